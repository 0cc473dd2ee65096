"""The two sides of the GPU benchmark: a branch of copd, and the plain way with everything repeated.

Both sample, score and update on the same problems; neither measures anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from benchmarks.cases import Shapes
from benchmarks.gpu_model import Size
from benchmarks.repeated import Rows, repeated_logprobs
from copd.branch import Branch
from copd.branch.prompts import PromptCache
from copd.config import Config, LossConfig
from copd.functional import clipped_surrogate, group_relative
from copd.policy import Policy
from copd.policy.loading import load_model
from copd.types import (
    ProblemId,
    RolloutBatch,
    RolloutRequest,
    ScoreRequest,
    TrainingBatch,
    UpdateRequest,
)

DOMAIN = "pictures"


@dataclass(frozen=True)
class Place:
    """Where and how passes run."""

    device: str
    dtype: str
    """Of compute, under autocast; master weights are float32."""


class Side(Protocol):
    """What takes part: each phase works on what the one before left."""

    def sample(self, step: int) -> None: ...
    def score(self) -> None: ...
    def update(self) -> None: ...


class Ours:
    """A branch, its methods as a run calls them."""

    def __init__(self, folder: Path, size: Size, place: Place, micro_batch_tokens: int) -> None:
        self.size, self.micro_batch = size, micro_batch_tokens
        config = build_config(folder, size, place, micro_batch_tokens)
        policy = Policy.load(folder, device=place.device)
        policy.end_tokens = frozenset()  # no token ends a completion: all have the full length
        book = PromptCache({DOMAIN: Shapes(DOMAIN, size.picture)}, policy.render_all)
        self.branch = Branch("learner", policy, book, config)

    def sample(self, step: int) -> None:
        first = step * self.size.num_prompts
        indices = range(first, first + self.size.num_prompts)
        problems = tuple(ProblemId(DOMAIN, "train", index) for index in indices)
        request = RolloutRequest("rlvr", problems, temperature=1.0, seed=step, position="measured")
        [self.batch] = self.branch.sample([request])
        assert (self.batch.lengths == self.size.num_tokens).all(), "lengths are forced"

    def score(self) -> None:
        batch: RolloutBatch = self.batch
        probes = np.linspace(0, len(batch.token_ids) - 1, 128).astype(np.int32)
        self.branch.score(
            [ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, top_k=64)]
        )

    def update(self) -> None:
        self.branch.update(UpdateRequest((TrainingBatch(DOMAIN, self.batch),), position="measured"))


class Plain:
    """`generate` on repeated rows; padded passes over whole rows in micro-batches."""

    def __init__(self, folder: Path, size: Size, place: Place, micro_batch_rows: int) -> None:
        self.size, self.place, self.micro_batch = size, place, micro_batch_rows
        renderer = Policy.load(folder).renderer
        self.renderer, self.tokenizer = renderer, renderer.tokenizer
        self.model: Any = load_model(
            str(folder), dtype="float32", device=place.device, trust_remote_code=False
        ).eval()
        self.model.generation_config.eos_token_id = None
        self.banned = banned_for(self.model, len(self.tokenizer)).to(place.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.01)

    def autocast(self) -> torch.autocast:
        enabled = self.place.dtype == "bfloat16"
        return torch.autocast(self.place.device, dtype=torch.bfloat16, enabled=enabled)

    @torch.no_grad()
    def sample(self, step: int) -> None:
        size = self.size
        domain = Shapes(DOMAIN, size.picture)
        indices = range(step * size.num_prompts, (step + 1) * size.num_prompts)
        problems = [domain.problem("train", index) for index in indices]
        prompts = self.renderer.render_all([problem.messages for problem in problems])
        self.rows = Rows.repeat(
            prompts, size.group_size, self.model.config.text_config.pad_token_id
        )
        inputs = {
            "input_ids": self.rows.input_ids,
            "attention_mask": self.rows.mask,
            "mm_token_type_ids": self.rows.kinds,
            **self.rows.media,
        }
        with self.autocast():
            output = self.model.generate(
                **{name: tensor.to(self.place.device) for name, tensor in inputs.items()},
                do_sample=True,
                top_k=0,
                max_new_tokens=size.num_tokens,
                logits_processor=[Ban(self.banned)],
            )
        self.completions = output[:, self.rows.input_ids.shape[1] :].cpu()
        texts = self.tokenizer.batch_decode(self.completions.tolist())
        rewards = torch.tensor([domain.verify(problems[0], text) for text in texts])
        groups = rewards.unflatten(0, (-1, size.group_size))
        loss = LossConfig()
        self.advantages = group_relative(
            groups, eps=loss.advantage_eps, scale=loss.scale_advantages
        ).flatten()

    @torch.no_grad()
    def score(self) -> None:
        for part in self._parts():
            self._logprobs(part)

    def update(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        config = LossConfig()
        for part in self._parts():
            logprobs = self._logprobs(part)
            losses, _ = clipped_surrogate(
                logprobs.flatten(),
                logprobs.detach().flatten(),
                self.advantages[part, None].to(logprobs.device).expand_as(logprobs).flatten(),
                clip_low=config.clip_low,
                clip_high=config.clip_high,
            )
            (losses.sum() / self.completions.numel()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def _parts(self) -> list[slice]:
        starts = range(0, len(self.completions), self.micro_batch)
        return [slice(start, start + self.micro_batch) for start in starts]

    def _logprobs(self, part: slice) -> Tensor:
        completions = self.completions[part]
        lengths = torch.full((len(completions),), self.size.num_tokens)
        with self.autocast():
            return repeated_logprobs(
                self.model, self.rows.select(part), completions, lengths, self.banned
            )


class Ban(LogitsProcessor):
    """What a policy forbids, forbidden to `generate`."""

    def __init__(self, banned: Tensor) -> None:
        self.banned = banned

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.banned, -torch.inf)


def banned_for(model: Any, num_tokens: int) -> Tensor:
    """Rows of the head without a token, and the placeholders of pixels."""
    config = model.config
    banned = torch.arange(config.text_config.vocab_size) >= num_tokens
    banned[[config.image_token_id, config.video_token_id, config.vision_start_token_id]] = True
    return banned


def build_config(folder: Path, size: Size, place: Place, micro_batch_tokens: int) -> Config:
    """The defaults of a run but for sizes and place."""
    return Config.model_validate(
        {
            "model": {"path": str(folder), "device": place.device, "dtype": place.dtype},
            "domains": {DOMAIN: {"type": "digits", "modality": "image"}},
            "recipe": {"type": "mixed", "steps": 1},
            "rollout": {
                "num_prompts": size.num_prompts,
                "group_size": size.group_size,
                "max_completion_tokens": size.num_tokens,
            },
            "optimizer": {"micro_batch_tokens": micro_batch_tokens},
        }
    )

"""The plain way, for what TRL cannot read: every completion carries its own copy of the prompt.

`generate` on repeated prompts and pixels, then one padded training pass over the repeated rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from benchmarks.cases import Case, Shapes, planned_lengths
from benchmarks.lengths import PlannedGenerate, control_tokens
from benchmarks.turns import Turns
from copd.config import LossConfig, OptimizerConfig
from copd.functional import clipped_surrogate, group_relative
from copd.policy.loading import load_model
from copd.policy.rendering.render import Prompt, Renderer

_MEDIA = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")


@dataclass(frozen=True, eq=False)
class Rows:
    """Prompts as `generate` takes them: a row per completion, padded on the left."""

    input_ids: Int[Tensor, "B L"]
    mask: Int[Tensor, "B L"]
    kinds: Int[Tensor, "B L"]
    """`mm_token_type_ids`: 0 text, 1 image, 2 video."""
    media: dict[str, Tensor]
    """Pixel rows and grids of all rows, end to end."""

    @classmethod
    def repeat(cls, prompts: Sequence[Prompt], group_size: int, pad: int) -> "Rows":
        """Each prompt, and its pixels, `group_size` times."""
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        ids = [prompt.input_ids for prompt in repeated]
        kinds = [p.media.get("mm_token_type_ids", torch.zeros_like(p.input_ids)) for p in repeated]
        media = {
            name: torch.cat([prompt.media[name] for prompt in repeated])
            for name in _MEDIA
            if name in repeated[0].media
        }
        masks = [torch.ones_like(row) for row in ids]
        return cls(_left_padded(ids, pad), _left_padded(masks, 0), _left_padded(kinds, 0), media)

    def select(self, rows: slice) -> "Rows":
        """Some of the rows with their pixels."""
        media = dict(self.media)
        for pixels, grid in (_MEDIA[:2], _MEDIA[2:]):
            if pixels in media:
                sizes = media[grid].prod(dim=1).tolist()
                media[pixels] = torch.cat(media[pixels].split(sizes)[rows])
                media[grid] = media[grid][rows]
        return Rows(self.input_ids[rows], self.mask[rows], self.kinds[rows], media)


def _left_padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=value, padding_side="left"
    )


@torch.no_grad()
def generate(
    model: Any, rows: Rows, *, max_tokens: int, processor: LogitsProcessor
) -> Int[Tensor, "B T"]:
    """Completions as transformers samples them, at temperature 1."""
    output = model.generate(
        input_ids=rows.input_ids,
        attention_mask=rows.mask,
        mm_token_type_ids=rows.kinds,
        **rows.media,
        do_sample=True,
        top_k=0,
        max_new_tokens=max_tokens,
        logits_processor=[processor],
    )
    return output[:, rows.input_ids.shape[1] :]


def repeated_logprobs(
    model: PreTrainedModel,
    rows: Rows,
    completions: Int[Tensor, "B T"],
    lengths: Int[Tensor, "B"],
    banned: Bool[Tensor, "V"],
) -> Float[Tensor, "B T"]:
    """Log-probabilities of right-padded completions, every row with its whole prompt."""
    body: Any = model.base_model
    own = (torch.arange(completions.shape[1]) < lengths[:, None]).to(rows.mask.dtype)
    input_ids = torch.cat([rows.input_ids, completions], dim=1)
    mask = torch.cat([rows.mask, own], dim=1)
    kinds = torch.cat([rows.kinds, torch.zeros_like(completions)], dim=1)
    positions, _ = body.get_rope_index(
        input_ids,
        mm_token_type_ids=kinds,
        image_grid_thw=rows.media.get("image_grid_thw"),
        video_grid_thw=rows.media.get("video_grid_thw"),
        attention_mask=mask,
    )
    inputs = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "position_ids": positions,
        "mm_token_type_ids": kinds,
        **rows.media,
    }
    inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    states = body(**inputs, use_cache=False).last_hidden_state[:, rows.input_ids.shape[1] - 1 : -1]
    head: Any = model.get_output_embeddings()
    logits = head(states).masked_fill(banned, -torch.inf)
    chosen = completions[..., None].to(model.device)
    return logits.log_softmax(dim=-1).gather(-1, chosen)[..., 0]


class Repeated:
    """A policy trained the plain way, with our loss and our optimizer's settings."""

    def __init__(self, case: Case, folder: Path, *, micro_batch: int) -> None:
        self.case, self.micro_batch = case, micro_batch or case.num_rows
        self.model: Any = load_model(
            str(folder), dtype="float32", device="cpu", trust_remote_code=False
        ).eval()
        self.renderer = Renderer.load(str(folder), self.model.config)
        self.tokenizer = self.renderer.tokenizer
        end = self.tokenizer.eos_token_id
        assert isinstance(end, int), "the miniature has one end token"
        self.end = end
        self.control = control_tokens(self.tokenizer)
        self.banned = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        self.banned[self.control] = True
        settings = OptimizerConfig()
        self.max_grad_norm = settings.max_grad_norm
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def sample(self, step: int) -> tuple[Rows, Tensor, Tensor]:
        """Problems of a step, completions of the planned lengths, and those lengths."""
        case, lengths = self.case, planned_lengths(self.case, step)
        domain = Shapes(case.domains[0], case.media)
        indices = range(step * case.num_prompts, (step + 1) * case.num_prompts)
        problems = [domain.problem("train", index) for index in indices]
        prompts = self.renderer.render_all([problem.messages for problem in problems])
        pad = self.tokenizer.pad_token_id
        assert isinstance(pad, int), "the miniature has a pad token"
        rows = Rows.repeat(prompts, case.group_size, pad)
        plan = PlannedGenerate(lengths, self.end, case.lengths[1], self.control)
        completions = generate(self.model, rows, max_tokens=case.lengths[1], processor=plan)
        return rows, completions, torch.from_numpy(lengths)

    def update(self, rows: Rows, completions: Tensor, lengths: Tensor) -> None:
        """One update on the token mean of the clipped surrogate."""
        config = LossConfig()
        rewards = torch.from_numpy(self._rewards(completions, lengths.numpy()))
        advantages = group_relative(
            rewards.unflatten(0, (-1, self.case.group_size)),
            eps=config.advantage_eps,
            scale=config.scale_advantages,
        ).flatten()
        self.optimizer.zero_grad(set_to_none=True)
        for start in range(0, len(lengths), self.micro_batch):
            part = slice(start, start + self.micro_batch)
            logprobs = repeated_logprobs(
                self.model, rows.select(part), completions[part], lengths[part], self.banned
            )
            is_own = torch.arange(completions.shape[1]) < lengths[part, None]
            chosen = logprobs[is_own]
            losses, _ = clipped_surrogate(
                chosen,
                chosen.detach(),
                advantages[part, None].expand_as(is_own)[is_own],
                clip_low=config.clip_low,
                clip_high=config.clip_high,
            )
            (losses.sum() / lengths.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()

    def _rewards(self, completions: Tensor, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
        domain = Shapes(self.case.domains[0], self.case.media)
        problem = domain.problem("train", 0)
        texts = [
            str(self.tokenizer.decode(ids[:length].tolist(), skip_special_tokens=True))
            for ids, length in zip(completions, lengths, strict=True)
        ]
        return np.array([domain.verify(problem, text) for text in texts], dtype=np.float32)


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int) -> None:
    """A step of the plain path per turn."""
    turns.model_comes_now()
    side = Repeated(case, folder, micro_batch=micro_batch)
    turns.ready(micro_batch=side.micro_batch)
    while turns.next():
        with turns.phase("sampling"):
            rows, completions, lengths = side.sample(turns.step)
        turns.sampled(int(lengths.sum()))
        with turns.phase("update"):
            side.update(rows, completions, lengths)

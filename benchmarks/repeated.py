"""The plain way, without sharing: every completion has its own copy of the prompt.

It samples with `generate` on repeated prompts and pixels, then trains with padded passes over the
repeated rows. It is the reference for clips, which TRL does not read, and on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LogitsProcessor, PreTrainedModel

from benchmarks.cases import Case, Shapes, digit_share, planned_lengths
from benchmarks.lengths import PlannedGenerate, banned_tokens
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
    """Pixel rows and grids of all rows, concatenated."""

    @classmethod
    def repeat(cls, prompts: Sequence[Prompt], group_size: int, pad: int) -> "Rows":
        """Repeat each prompt and its pixels `group_size` times."""
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        ids = [prompt.input_ids for prompt in repeated]
        kinds = [p.media.get("mm_token_type_ids", torch.zeros_like(p.input_ids)) for p in repeated]
        media = {
            name: torch.cat([prompt.media[name] for prompt in repeated])
            for name in _MEDIA
            if name in repeated[0].media
        }

        def padded(rows: list[Tensor], value: int) -> Tensor:
            return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")

        masks = [torch.ones_like(row) for row in ids]
        return cls(padded(ids, pad), padded(masks, 0), padded(kinds, 0), media)

    def inputs(self, device: str | torch.device) -> dict[str, Tensor]:
        """Return the arguments of a model."""
        named = {"input_ids": self.input_ids, "attention_mask": self.mask, **self.media}
        named["mm_token_type_ids"] = self.kinds
        return {name: tensor.to(device) for name, tensor in named.items()}

    def select(self, rows: slice) -> "Rows":
        """Return some of the rows with their pixels."""
        media = dict(self.media)
        for pixels, grid in (_MEDIA[:2], _MEDIA[2:]):
            if pixels in media:
                sizes = media[grid].prod(dim=1).tolist()
                media[pixels] = torch.cat(media[pixels].split(sizes)[rows])
                media[grid] = media[grid][rows]
        return Rows(self.input_ids[rows], self.mask[rows], self.kinds[rows], media)


@torch.no_grad()
def generate(
    model: Any, rows: Rows, *, max_tokens: int, processor: LogitsProcessor
) -> Int[Tensor, "B T"]:
    """Sample completions with transformers at temperature 1."""
    output = model.generate(
        **rows.inputs(model.device),
        do_sample=True,
        top_k=0,
        max_new_tokens=max_tokens,
        logits_processor=[processor],
    )
    return output[:, rows.input_ids.shape[1] :].cpu()


def repeated_logprobs(
    model: PreTrainedModel,
    rows: Rows,
    completions: Int[Tensor, "B T"],
    lengths: Int[Tensor, "B"],
    banned: Bool[Tensor, "V"],
) -> Float[Tensor, "B T"]:
    """Return log-probabilities of right-padded completions; every row has its whole prompt."""
    body: Any = model.base_model
    own = (torch.arange(completions.shape[1]) < lengths[:, None]).to(rows.mask.dtype)
    whole = Rows(
        torch.cat([rows.input_ids, completions], dim=1),
        torch.cat([rows.mask, own], dim=1),
        torch.cat([rows.kinds, torch.zeros_like(completions)], dim=1),
        rows.media,
    )
    grids = {name: grid for name, grid in rows.media.items() if name.endswith("_grid_thw")}
    positions, _ = body.get_rope_index(
        whole.input_ids, mm_token_type_ids=whole.kinds, attention_mask=whole.mask, **grids
    )
    inputs = {**whole.inputs(model.device), "position_ids": positions.to(model.device)}
    states = body(**inputs, use_cache=False).last_hidden_state[:, rows.input_ids.shape[1] - 1 : -1]
    head: Any = model.get_output_embeddings()
    logits = head(states).masked_fill(banned, -torch.inf)
    chosen = completions[..., None].to(model.device)
    return logits.log_softmax(dim=-1).gather(-1, chosen)[..., 0]


class Repeated:
    """A policy trained the plain way, with our loss and our optimizer's settings.

    `micro_batch` is in rows. With a `dtype` of bfloat16 passes run under autocast.
    """

    def __init__(
        self,
        case: Case,
        folder: Path,
        *,
        micro_batch: int = 0,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        self.case, self.micro_batch = case, micro_batch or case.num_rows
        self.device, self.dtype = device, dtype
        self.model: Any = load_model(
            str(folder), dtype="float32", device=device, trust_remote_code=False
        ).eval()
        self.renderer = Renderer.load(str(folder), self.model.config)
        self.tokenizer: Any = self.renderer.tokenizer
        vocab_size = self.model.config.text_config.vocab_size
        self.banned = banned_tokens(self.tokenizer, vocab_size).to(device)
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

    def sample(self, step: int) -> None:
        """Sample completions of the planned lengths for the problems of a step, and verify them."""
        case, lengths = self.case, planned_lengths(self.case, step)
        problems = Shapes(case.domains[0], case.media).problems(step, case.num_prompts)
        prompts = self.renderer.render_all([problem.messages for problem in problems])
        self.rows = Rows.repeat(prompts, case.group_size, self.tokenizer.pad_token_id)
        self.lengths = torch.from_numpy(lengths)
        end, longest = self.tokenizer.eos_token_id, case.lengths[1]
        plan = PlannedGenerate(lengths, end, longest, self.banned)
        with self._autocast():
            self.completions = generate(self.model, self.rows, max_tokens=longest, processor=plan)
        texts = [
            self.tokenizer.decode(ids[:length].tolist(), skip_special_tokens=True)
            for ids, length in zip(self.completions, lengths, strict=True)
        ]
        rewards = torch.tensor([digit_share(text) for text in texts])
        config = LossConfig()
        self.advantages = group_relative(
            rewards.unflatten(0, (-1, case.group_size)),
            eps=config.advantage_eps,
            scale=config.scale_advantages,
        ).flatten()

    @torch.no_grad()
    def score(self) -> None:
        """Score the completions as a teacher."""
        for rows in self._micro_batches():
            self._logprobs(rows)

    def update(self) -> None:
        """Make one update on the token mean of the clipped surrogate."""
        config = LossConfig()
        self.optimizer.zero_grad(set_to_none=True)
        for rows in self._micro_batches():
            is_own = torch.arange(self.completions.shape[1]) < self.lengths[rows, None]
            advantages = self.advantages[rows, None].expand_as(is_own)[is_own]
            chosen = self._logprobs(rows)[is_own.to(self.device)]
            losses, _ = clipped_surrogate(
                chosen,
                chosen.detach(),
                advantages.to(self.device),
                clip_low=config.clip_low,
                clip_high=config.clip_high,
            )
            (losses.sum() / self.lengths.sum()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        self.optimizer.step()

    def _micro_batches(self) -> list[slice]:
        starts = range(0, len(self.completions), self.micro_batch)
        return [slice(start, start + self.micro_batch) for start in starts]

    def _logprobs(self, rows: slice) -> Tensor:
        completions, lengths = self.completions[rows], self.lengths[rows]
        with self._autocast():
            return repeated_logprobs(
                self.model, self.rows.select(rows), completions, lengths, self.banned
            )

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype == "bfloat16"
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=enabled)


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int) -> None:
    """Take a step per turn."""
    turns.start_memory()
    side = Repeated(case, folder, micro_batch=micro_batch)
    turns.ready(micro_batch=side.micro_batch)
    while turns.next():
        with turns.phase("sampling"):
            side.sample(turns.step)
        turns.sampled(int(side.lengths.sum()))
        with turns.phase("update"):
            side.update()

"""Problems of the digits world as padded batches for the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from copd.domains.digits.generator import Question
from copd.types import Image, Text, Video

PATCH, MERGE, TEMPORAL = 8, 2, 2

Item = tuple[Question, tuple[str, str, str]]
"""A problem and its three completions."""


def patches(frames: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return frames `F H W 3` as Qwen's processors do: rows for the vision tower, and the grid."""
    frames = frames.astype(np.float32) / 127.5 - 1
    grid = [n // size for n, size in zip(frames.shape, (TEMPORAL, PATCH, PATCH), strict=False)]
    slices, height, width = grid
    rows = frames.transpose(0, 3, 1, 2).reshape(
        slices, TEMPORAL, 3, height // MERGE, MERGE, PATCH, width // MERGE, MERGE, PATCH
    )
    rows = rows.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return rows.reshape(slices * height * width, -1), grid


class Prompt(NamedTuple):
    """Token ids of a prompt with its pixels."""

    ids: list[int]
    kind: str
    pixels: np.ndarray
    grid: list[int]


class Encoder:
    """Pads problems to rows: a prompt and three completions that do not attend to each other."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model: Qwen3VLForConditionalGeneration):
        self.tokenizer, self.model = tokenizer, model
        self.pad_id = tokenizer.get_vocab()["<|endoftext|>"]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt(self, question: Question) -> Prompt:
        text, kind, pixels, grid = "<|im_start|>user\n", "text", np.zeros((0, 0)), [0, 0, 0]
        for part in question.parts:
            if isinstance(part, Text):
                text += part.text
                continue
            if isinstance(part, Image):
                kind, frames = "image", np.stack([part.pixels] * TEMPORAL)
            else:
                kind, frames = "video", part.frames
            pixels, grid = patches(frames)
            pads = f"<|{kind}_pad|>" * (grid[1] * grid[2] // MERGE**2)
            for group in range(grid[0]):
                if isinstance(part, Video):
                    stamp = (group * TEMPORAL + (TEMPORAL - 1) / 2) / part.fps
                    text += f"<{stamp:.1f} seconds>"
                text += f"<|vision_start|>{pads}<|vision_end|>"
        text += "<|im_end|>\n<|im_start|>assistant\n"
        return Prompt(self.encode(text), kind, pixels, grid)

    def batch(self, items: Sequence[Item]) -> dict[str, Any]:
        """Encode problems of one domain, each with its completions."""
        prompts = [self.prompt(question) for question, _ in items]
        groups = [[self.encode(text + "<|im_end|>") for text in texts] for _, texts in items]
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        totals = [len(p.ids) + sum(map(len, g)) for p, g in zip(prompts, groups, strict=True)]
        size, longest, total = len(items), int(lengths.max()), max(totals)
        ids = torch.full((size, total), self.pad_id)
        prompt_ids = torch.full((size, longest), self.pad_id)
        mask = torch.eye(total, dtype=torch.bool).repeat(size, 1, 1)
        targets = torch.full((size, total), -100)
        offsets = torch.zeros(size, total, dtype=torch.long)
        for row, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
            start = n = len(prompt.ids)
            ids[row, :n] = prompt_ids[row, :n] = torch.tensor(prompt.ids)
            mask[row, :n, :n] = torch.ones(n, n).tril().bool()
            for completion in group:
                end = start + len(completion)
                ids[row, start:end] = torch.tensor(completion)
                mask[row, start:end, :n] = True
                mask[row, start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
                targets[row, start : end - 1] = torch.tensor(completion[1:])
                offsets[row, start:end] = torch.arange(n, n + end - start)
                start = end
        media, positions, deltas = self._positions(prompts, prompt_ids, lengths)
        full = (offsets + deltas).expand(3, -1, -1).clone()
        for row, n in enumerate(lengths.tolist()):
            full[:, row, :n] = positions[:, row, :n]
        inputs = {"input_ids": ids, "position_ids": full, "attention_mask": mask[:, None], **media}
        first = torch.tensor([[completion[0] for completion in group] for group in groups])
        return {"inputs": inputs, "targets": targets, "first": first, "lengths": lengths}

    def _positions(
        self, prompts: Sequence[Prompt], ids: Tensor, lengths: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return the pixels as the model takes them, and the positions of the prompts."""
        config, kind, media = self.model.config, prompts[0].kind, {}
        if kind != "text":
            grids = torch.tensor([prompt.grid for prompt in prompts])
            pixels = torch.from_numpy(np.concatenate([prompt.pixels for prompt in prompts]))
            suffix = "_videos" if kind == "video" else ""
            media = {f"pixel_values{suffix}": pixels, f"{kind}_grid_thw": grids}
        types = (ids == config.image_token_id).long() + 2 * (ids == config.video_token_id).long()
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        grids = {name: tensor for name, tensor in media.items() if name.endswith("_grid_thw")}
        model: Any = self.model.model
        rope = model.get_rope_index(ids, mm_token_type_ids=types, attention_mask=mask, **grids)
        return media, *rope

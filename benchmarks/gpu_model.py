"""What the GPU benchmark runs: a random Qwen3-VL of about half a billion parameters, or a toy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig

from benchmarks.cases import Shapes
from benchmarks.floor import Group, least_flops
from benchmarks.model import rotary, save_random
from copd.planning.cluster import Widths
from copd.policy.rendering.render import Renderer

_LIMITS = {"shortest_edge": 32 * 32, "longest_edge": 1024 * 1024}


@dataclass(frozen=True)
class Size:
    """A model and a step."""

    picture: tuple[int, int]
    """Pixels; 32 x 32 of them are a visual token."""
    num_prompts: int
    group_size: int
    num_tokens: int
    """Of every completion."""
    text: dict[str, int]
    vision: dict[str, Any]
    sections: tuple[int, int, int]
    """Of the rotary embedding: time, height, width."""

    @property
    def sampled(self) -> int:
        """Tokens of a step."""
        return self.num_prompts * self.group_size * self.num_tokens


FULL = Size(
    picture=(1024, 1024),
    num_prompts=16,
    group_size=8,
    num_tokens=512,
    text={
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 18,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    vision={
        "hidden_size": 512,
        "intermediate_size": 2048,
        "depth": 12,
        "num_heads": 8,
        "out_hidden_size": 1024,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [3, 6, 9],
    },
    sections=(24, 20, 20),
)
TOY = Size(
    picture=(64, 64),
    num_prompts=2,
    group_size=2,
    num_tokens=6,
    text={
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    },
    vision={
        "hidden_size": 32,
        "intermediate_size": 48,
        "depth": 2,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
    sections=(3, 3, 2),
)


def save_model(folder: Path, size: Size) -> int:
    """A complete Hugging Face folder, always the same weights; returns how many there are."""
    rope = rotary(5_000_000.0, size.sections)
    text = {**size.text, "max_position_embeddings": 32_768, "rope_parameters": rope}
    return save_random(folder, text=text, vision=size.vision, patch=16, limits=_LIMITS)


def least_of_phases(folder: Path, size: Size) -> tuple[dict[str, int], int]:
    """The least FLOPs of each phase by itself (`benchmarks.floor`), and the tokens of a prompt.

    Sampling and scoring are a forward pass over prompts and completions, an update three.
    """
    config = AutoConfig.from_pretrained(folder)
    renderer = Renderer.load(str(folder), config)
    prompt = renderer.render(Shapes("pictures", size.picture).problem("train", 0).messages)
    (frames, height, width), *_ = prompt.media["image_grid_thw"].tolist()
    lengths = np.full(size.group_size, size.num_tokens)
    group = Group(len(prompt.input_ids), (height * width,) * frames, lengths)
    widths, groups = Widths.read(config.to_dict()), [group] * size.num_prompts
    update = least_flops(widths, groups)
    forward = least_flops(widths, groups, num_askings=1) - update
    least = {"sampling": forward, "scoring": forward, "update": update}
    return least, len(prompt.input_ids)

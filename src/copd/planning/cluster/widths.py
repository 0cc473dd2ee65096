"""Sizes of a model that its matmuls follow from, and their FLOPs. Knows no training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Matrix = tuple[int, int]


@dataclass(frozen=True)
class Widths:
    """Sizes of a decoder with grouped queries, and of a Qwen3-VL tower before it, if any."""

    text: Mapping[str, Matrix]
    """The matrices of one text layer."""
    num_layers: int
    attention: int
    """Query heads times their width."""
    head: Matrix
    patch: Matrix
    block: Mapping[str, Matrix]
    """The matrices of one vision block."""
    num_blocks: int
    merger: Mapping[str, Matrix]
    num_mergers: int
    """The last one and those of deepstack."""
    patches_per_token: int
    num_embeddings: int = 1
    """Times the head's matrix is there: 2 where the embeddings are not tied to it."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Widths:
        """From a model's config.json, of a Qwen3-VL or of a text model like Qwen3 or Llama."""
        text, vision = config.get("text_config", config), config.get("vision_config")
        width, inner = text["hidden_size"], text["intermediate_size"]
        heads = text["num_attention_heads"]
        head_width = text.get("head_dim") or width // heads
        query, key = heads * head_width, text.get("num_key_value_heads", heads) * head_width
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        return cls(
            text={
                "q": (width, query),
                "k": (width, key),
                "v": (width, key),
                "o": (query, width),
                "gate": (width, inner),
                "up": (width, inner),
                "down": (inner, width),
            },
            num_layers=text["num_hidden_layers"],
            attention=query,
            head=(width, text["vocab_size"]),
            num_embeddings=1 if tied else 2,
            **(_tower(vision) if vision else _NO_TOWER),
        )

    @property
    def num_text(self) -> int:
        """Weights that a decoded token goes through: layers and head."""
        return self.num_layers * sum(map(_size, self.text.values())) + _size(self.head)

    @property
    def num_vision(self) -> int:
        """Weights of the tower; biases, norms and positions are left out everywhere."""
        mergers = self.num_mergers * sum(map(_size, self.merger.values()))
        return _size(self.patch) + self.num_blocks * sum(map(_size, self.block.values())) + mergers

    @property
    def num_parameters(self) -> int:
        return self.num_text + (self.num_embeddings - 1) * _size(self.head) + self.num_vision

    @property
    def cached(self) -> int:
        """Numbers that a token leaves behind for later ones to attend to: keys and values."""
        return self.num_layers * (self.text["k"][1] + self.text["v"][1])

    def text_flops(self, *, run: float, pairs: float, predicted: float) -> float:
        """layers (2 w R + 4 d A) + 2 D V T: R tokens run, A pairs attending, T predicted.

        A multiplication and an addition for each weight, two products for each pair: Kaplan et al.
        (2001.08361), table 1. Grouped queries make w smaller, not A.
        """
        weights = sum(map(_size, self.text.values()))
        layers = self.num_layers * (2 * weights * run + 4 * self.attention * pairs)
        return layers + 2 * _size(self.head) * predicted

    def vision_flops(self, frames: Sequence[int]) -> float:
        """Blocks and mergers for pictures of so many patches; each attends to itself alone."""
        patches, pairs = sum(frames), sum(n * n for n in frames)
        if not patches:
            return 0
        block = 2 * sum(map(_size, self.block.values())) * patches
        block += 4 * self.block["proj"][0] * pairs
        merged = patches // self.patches_per_token
        mergers = self.num_mergers * 2 * sum(map(_size, self.merger.values())) * merged
        return self.num_blocks * block + mergers

    def patch_flops(self, frames: Sequence[int]) -> float:
        """The patch embedding."""
        return 2 * sum(frames) * _size(self.patch)


def _tower(vision: Mapping[str, Any]) -> dict[str, Any]:
    width, inner, square = (
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["spatial_merge_size"] ** 2,
    )
    pixels = vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2
    merged = width * square
    return {
        "patch": (pixels, width),
        "block": {
            "qkv": (width, 3 * width),
            "proj": (width, width),
            "fc1": (width, inner),
            "fc2": (inner, width),
        },
        "num_blocks": vision["depth"],
        "merger": {"fc1": (merged, merged), "fc2": (merged, vision["out_hidden_size"])},
        "num_mergers": 1 + len(vision["deepstack_visual_indexes"]),
        "patches_per_token": square,
    }


def _size(matrix: Matrix) -> int:
    return matrix[0] * matrix[1]


_NO_TOWER: dict[str, Any] = {
    "patch": (0, 0),
    "block": {},
    "num_blocks": 0,
    "merger": {},
    "num_mergers": 0,
    "patches_per_token": 1,
}

QWEN3_VL_4B = Widths.read(
    {
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "depth": 24,
            "out_hidden_size": 2560,
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    }
)
"""The paper's model, Qwen3-VL-4B-Instruct, by its config.json."""

"""What the methods of a step have to do: FLOPs, bytes, steps and passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from copd.config import Config
from copd.planning.shapes import Shapes
from copd.planning.workload import Workload, decode_loops

Loop = Sequence[Workload]
"""Batches, or parts of them, that are decoded side by side."""

_BYTES = 2
"""Of a number in bfloat16."""


@dataclass(frozen=True)
class Setup:
    """The model of a branch and the settings that its seconds depend on."""

    shapes: Shapes
    micro_batch_tokens: int
    max_rows: int
    """Completions in flight at once."""
    width: int = 1
    """Ranks, and GPUs, of a branch."""
    trains_vision: bool = True
    lora: bool = False
    """Only an adapter is trained: the base's weights have no gradient."""
    checkpointing: bool = False

    @classmethod
    def of(cls, config: Config, shapes: Shapes, width: int) -> Setup:
        """Take the settings from a configuration."""
        model, lora = config.model, config.model.branches == "lora"
        return cls(
            shapes,
            config.optimizer.micro_batch_tokens,
            config.rollout.max_rows,
            width,
            trains_vision=not (model.frozen_vision or lora),
            lora=lora,
            checkpointing=model.gradient_checkpointing,
        )

    @property
    def num_trained(self) -> int:
        """Weights with an optimizer; an adapter's are too few to count."""
        if self.lora:
            return 0
        frozen = 0 if self.trains_vision else self.shapes.tower_parameters
        return self.shapes.parameters - frozen

    @property
    def backward(self) -> int:
        """Forward passes' worth of a backward pass: gradients of inputs and of weights."""
        return (1 if self.lora else 2) + int(self.checkpointing)

    @property
    def gathered_bytes(self) -> float:
        """What a GPU receives when weights are gathered once, in bfloat16 (FSDP, 2304.11277)."""
        return _BYTES * self.shapes.parameters * (self.width - 1) / self.width

    @property
    def reduced_bytes(self) -> float:
        """What a GPU sends when gradients are reduced once, in float32."""
        return 4 * self.num_trained * (self.width - 1) / self.width

    def loops(self, loads: Sequence[Workload]) -> list[Loop]:
        """Return the decode loops of some batches."""
        max_rows, max_tokens = self.max_rows, self.micro_batch_tokens
        return list(decode_loops(loads, max_rows=max_rows, max_tokens=max_tokens))

    def num_passes(self, loads: Sequence[Workload]) -> int:
        """Return the number of micro-batches: whole groups, one at least."""
        parts = [load.micro_batch(self.micro_batch_tokens).num_prompts for load in loads]
        return sum(math.ceil(ld.num_prompts / n) for ld, n in zip(loads, parts, strict=True))


def text_flops(shapes: Shapes, *, run: float, pairs: float, predicted: float) -> float:
    """Return `layers (2 w R + 4 d A) + 2 D V T`: R tokens run, A pairs attending, T predicted.

    A multiplication and an addition for each weight, two products for each pair: Kaplan et al.
    (2001.08361), table 1. Grouped queries make w smaller, not A.
    """
    attention = shapes.layers * 4 * shapes.query * pairs
    return 2 * shapes.layer_parameters * run + attention + 2 * shapes.head * predicted


def vision_flops(shapes: Shapes, load: Workload) -> float:
    """Return a pass over the pixels of all prompts; every picture attends to itself alone."""
    tower = shapes.tower
    if tower is None or not load.visual_tokens:
        return 0
    patches = load.visual_tokens * tower.patches_per_token
    pairs = patches**2 / max(1, load.pictures)
    blocks = tower.depth * (2 * tower.block_weights * patches + 4 * tower.hidden * pairs)
    merged = 2 * tower.merger_weights * load.visual_tokens
    return load.num_prompts * (blocks + merged + 2 * tower.patch_weights * patches)


def read_flops(shapes: Shapes, load: Workload) -> float:
    """Return a pass over all prompts and their pixels."""
    length = load.prompt_tokens
    text = text_flops(shapes, run=length, pairs=length * (length + 1) / 2, predicted=0)
    return load.num_prompts * text + vision_flops(shapes, load)


def complete_flops(shapes: Shapes, load: Workload) -> float:
    """Return a pass over all completions, whose last token is never run; also that of decoding."""
    mean, square = load.lengths.mean, load.lengths.square
    pairs = (mean - 1) * load.prompt_tokens + (square - mean) / 2
    return load.num_rows * text_flops(shapes, run=mean - 1, pairs=pairs, predicted=mean)


def pass_flops(shapes: Shapes, loads: Sequence[Workload]) -> float:
    """Return a pass over prompts and completions."""
    return sum(read_flops(shapes, load) + complete_flops(shapes, load) for load in loads)


def update_flops(setup: Setup, loads: Sequence[Workload]) -> float:
    """Return forward and backward passes; prompts that one decode loop holds are not read again."""
    shapes, keeps_prompts = setup.shapes, not setup.lora and len(setup.loops(loads)) == 1
    times = setup.backward + (0 if keeps_prompts else 1)
    total = 0.0
    for load in loads:
        vision = vision_flops(shapes, load)
        total += (1 + setup.backward) * complete_flops(shapes, load)
        total += times * (read_flops(shapes, load) - (0 if setup.trains_vision else vision))
    return total


def loop_bytes(shapes: Shapes, loop: Loop) -> float:
    """Return what decoding reads: weights every step, keys of a prompt once for its group.

    This bounds the decoding of few rows: Pope et al. (2211.05102), section 2.1.
    """
    weights = loop_steps(loop) * (shapes.layer_parameters + shapes.head)
    prompts = sum(ld.num_prompts * ld.prompt_tokens * ld.lengths.longest for ld in loop)
    own = sum(load.num_rows * load.lengths.square / 2 for load in loop)
    return _BYTES * (weights + 2 * shapes.layers * shapes.key * (prompts + own))


def loop_steps(loop: Loop) -> float:
    """Return the decode steps of a loop, as many as its longest completion has tokens."""
    return max(load.lengths.longest for load in loop)


def traffic_bytes(load: Workload, *, is_cross: bool, probes: int, top_k: int) -> float:
    """Return what a batch sends through the process that runs the training (docs/structure.md).

    N tokens and B completions: 8 N + 9 B and about 4 N of text from the student, twice with the
    update; of a cross batch also 4 N + 4 B + 4 M to the teacher, and the teacher outputs,
    4 N + 4 M + 8 M K, twice.
    """
    tokens, rows = load.num_tokens, load.num_rows
    batch = 12 * tokens + 9 * rows
    request = 4 * tokens + 4 * rows + 4 * probes
    outputs = 4 * tokens + 4 * probes + 8 * probes * top_k
    return 2 * batch + ((request + 2 * outputs) if is_cross else 0)

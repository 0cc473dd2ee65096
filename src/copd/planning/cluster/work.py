"""What the methods of a step have to do: FLOPs, bytes, steps, passes. Knows no machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from copd.planning.cluster.widths import Widths

_BYTES = 2
"""Of a number in bfloat16."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of completions."""

    mean: float
    square: float
    """Mean of their squares."""
    longest: float

    @classmethod
    def spread(cls, mean: float, limit: float, deviation: float) -> Lengths:
        """A deviation relative to the mean, none at the limit; the longest is three away."""
        relative = deviation if mean < limit else 0.0
        longest = min(limit, mean * (1 + 3 * relative))
        return cls(mean, mean**2 * (1 + relative**2), longest)


@dataclass(frozen=True)
class Workload:
    """One batch: P prompts of L tokens, G completions each."""

    prompts: int
    group_size: int
    prompt_tokens: int
    """Visual tokens included."""
    frames: tuple[int, ...]
    """Patches of every picture or pair of frames of a prompt."""
    lengths: Lengths

    @property
    def rows(self) -> int:
        return self.prompts * self.group_size

    @property
    def tokens(self) -> float:
        """Of all completions."""
        return self.rows * self.lengths.mean

    def share(self, width: int) -> Workload:
        """What the busiest of `width` processes gets: whole groups."""
        return self._with(math.ceil(self.prompts / width))

    def _with(self, prompts: int) -> Workload:
        return Workload(prompts, self.group_size, self.prompt_tokens, self.frames, self.lengths)


@dataclass(frozen=True)
class Setup:
    """What a branch is and how it is set."""

    widths: Widths
    micro_batch_tokens: int
    max_rows: int
    """Completions in flight at once."""
    width: int = 1
    """Processes, and GPUs, of a branch."""
    trains_vision: bool = True
    lora: bool = False
    """Only an adapter learns: no gradient of the base's weights."""
    checkpointing: bool = False
    eight_bit: bool = False
    """Moments in 8 bits."""

    @property
    def num_trained(self) -> int:
        """Weights with an optimizer; an adapter's are too few to count."""
        if self.lora:
            return 0
        widths = self.widths
        return widths.num_parameters - (0 if self.trains_vision else widths.num_vision)

    @property
    def backward(self) -> int:
        """Forward passes' worth of a backward pass: gradients of inputs and of weights."""
        return (1 if self.lora else 2) + int(self.checkpointing)

    @property
    def state_bytes(self) -> float:
        """Of a GPU: master weights, gradients and moments in float32, and weights as computed.

        16 (or 10) bytes per trained weight (ZeRO, 1910.02054), shared by all GPUs of a branch.
        """
        per_weight = 10 if self.eight_bit else 16
        own = 4 * self.widths.num_parameters + (per_weight - 4) * self.num_trained
        return own / self.width + _BYTES * self.widths.num_parameters


def read_flops(widths: Widths, load: Workload) -> float:
    """A pass over all prompts and their pixels."""
    length = load.prompt_tokens
    text = widths.text_flops(run=length, pairs=length * (length + 1) / 2, predicted=0)
    return load.prompts * (text + _seeing(widths, load))


def complete_flops(widths: Widths, load: Workload) -> float:
    """A pass over all completions, whose last token is never run; also that of decoding."""
    mean, square = load.lengths.mean, load.lengths.square
    pairs = (mean - 1) * load.prompt_tokens + (square - mean) / 2
    return load.rows * widths.text_flops(run=mean - 1, pairs=pairs, predicted=mean)


def update_flops(setup: Setup, loads: Sequence[Workload]) -> float:
    """Forward and backward; prompts that were read in one go are not read again."""
    widths, factor = setup.widths, 1 + setup.backward
    total = 0.0
    again = 0 if keeps_prompts(setup, loads) else 1
    for load in loads:
        total += factor * complete_flops(widths, load)
        seeing = load.prompts * _seeing(widths, load)
        total += (setup.backward + again) * (read_flops(widths, load) - seeing)
        total += (setup.backward + again) * seeing if setup.trains_vision else 0
    return total


def keeps_prompts(setup: Setup, loads: Sequence[Workload]) -> bool:
    """Whether the update goes on from the prompts as sampling has read them."""
    return not setup.lora and len(list(decode_loops(setup, loads))) == 1


@dataclass(frozen=True)
class Loop:
    """Batches, or pieces of them, that are decoded side by side."""

    loads: tuple[Workload, ...]

    @property
    def steps(self) -> float:
        """As many as the longest completion has tokens."""
        return max(load.lengths.longest for load in self.loads)

    def flops(self, widths: Widths) -> float:
        return sum(complete_flops(widths, load) for load in self.loads)

    def bytes_read(self, widths: Widths) -> float:
        """Weights once a step; keys and values of every prompt for its group, of every row its own.

        What bounds decoding of few rows: Pope et al. (2211.05102), section 2.1.
        """
        weights = self.steps * widths.num_text
        prompts = sum(ld.prompts * ld.prompt_tokens * ld.lengths.longest for ld in self.loads)
        own = sum(load.rows * load.lengths.square / 2 for load in self.loads)
        return _BYTES * (weights + widths.cached * (prompts + own))

    def cache_bytes(self, widths: Widths) -> float:
        """Keys and values when half of the rows have ended: until then none leaves.

        Their storage doubles when it is full (copd.policy.sampling.decoding).
        """
        prompts = sum(load.prompts * load.prompt_tokens for load in self.loads)
        rows = sum(
            load.rows * min(load.lengths.longest, 2 ** math.ceil(math.log2(load.lengths.mean)))
            for load in self.loads
        )
        return _BYTES * widths.cached * (prompts + rows)


def decode_loops(setup: Setup, loads: Sequence[Workload]) -> Iterator[Loop]:
    """As `copd.branch.sampling.plan_decode_loops` cuts: by rows in flight and by tokens of prompts."""
    loop: list[Workload] = []
    rows = tokens = 0
    for load in loads:
        left = load.prompts
        while left:
            room = min(
                (setup.max_rows - rows) // load.group_size,
                (setup.micro_batch_tokens - tokens) // load.prompt_tokens,
            )
            taken = min(left, max(room, 0 if loop else 1))
            if taken:
                loop.append(load._with(taken))
                rows, tokens = rows + taken * load.group_size, tokens + taken * load.prompt_tokens
                left -= taken
            if left:
                yield Loop(tuple(loop))
                loop, rows, tokens = [], 0, 0
    if loop:
        yield Loop(tuple(loop))


def num_passes(setup: Setup, load: Workload) -> int:
    """Micro-batches of a batch: whole groups, one at least."""
    group = load.prompt_tokens + load.group_size * load.lengths.mean
    return math.ceil(load.prompts / max(1, setup.micro_batch_tokens // group))


def traffic_bytes(load: Workload, *, is_cross: bool, probes: int, top_k: int) -> float:
    """What a batch sends through the process that runs the training (docs/structure.md).

    N tokens and B completions: 8 N + 9 B and about 4 N of text from the student, twice with the
    update; of a cross batch also 4 N + 4 B + 4 M to the teacher, and its answer, 4 N + 4 M + 8 M K,
    twice.
    """
    tokens, rows = load.tokens, load.rows
    batch = 12 * tokens + 9 * rows
    asked = 4 * tokens + 4 * rows + 4 * probes
    told = 4 * tokens + 4 * probes + 8 * probes * top_k
    return 2 * batch + ((asked + 2 * told) if is_cross else 0)


def gathered_bytes(setup: Setup) -> float:
    """What a GPU receives when the weights are gathered once, in bfloat16 (FSDP, 2304.11277)."""
    return _BYTES * setup.widths.num_parameters * (setup.width - 1) / setup.width


def reduced_bytes(setup: Setup) -> float:
    """What a GPU sends when gradients are reduced once, in float32."""
    return 4 * setup.num_trained * (setup.width - 1) / setup.width


def _seeing(widths: Widths, load: Workload) -> float:
    return widths.vision_flops(load.frames) + widths.patch_flops(load.frames)

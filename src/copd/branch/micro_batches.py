"""Batches cut into micro-batches, and the loop that runs a policy over them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

from copd.policy import PackedStates, Policy, Prompt, SharedPrefix
from copd.types import RolloutBatch, ScoreRequest

Precision = Literal["float32", "bfloat16"]
"""Precision of passes through a model; weights and losses are always float32."""

Result = TypeVar("Result")

NUM_KERNELS = 64
"""Compiled bfloat16 products that a CPU process caches: as many as a step has shapes."""


@dataclass(frozen=True)
class MicroBatch:
    """Consecutive problems of a batch, as slices of its axes."""

    problems: slice
    """Counted from the first problem whose prompt was given."""
    rollouts: slice
    tokens: slice


def micro_batches(
    batch: RolloutBatch | ScoreRequest,
    prompt_lengths: Sequence[int],
    max_tokens: int,
    *,
    first: int = 0,
) -> Iterator[MicroBatch]:
    """Cut a batch into micro-batches of at most `max_tokens` tokens, or one problem if larger.

    Args:
        batch: P problems with G completions each.
        prompt_lengths: Tokens of each prompt. There may be fewer than P: then only the problems
            from `first` on that have one are cut.
        max_tokens: Limit on the prompt and completion tokens of a micro-batch.
        first: Index of the problem that `prompt_lengths[0]` belongs to.

    Yields:
        The micro-batches, in order.
    """
    group_size, end = len(batch.lengths) // len(batch.problems), first + len(prompt_lengths)
    begin = first
    starts = np.concatenate([[0], np.cumsum(batch.lengths)])
    sizes = batch.lengths.reshape(-1, group_size).sum(axis=1)
    sizes[first:end] += np.array(prompt_lengths, dtype=sizes.dtype)
    while first < end:
        last, tokens = first + 1, sizes[first]
        while last < end and tokens + sizes[last] <= max_tokens:
            tokens += sizes[last]
            last += 1
        rollouts = slice(first * group_size, last * group_size)
        yield MicroBatch(
            slice(first - begin, last - begin),
            rollouts,
            slice(int(starts[rollouts.start]), int(starts[rollouts.stop])),
        )
        first = last


@dataclass(frozen=True, eq=False)
class Forward:
    """Forward passes of a policy over packed batches, one micro-batch at a time."""

    policy: Policy
    micro_batch_tokens: int
    precision: Precision

    def autocast(self) -> torch.autocast:
        """Run passes in bfloat16 if the precision says so."""
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=enabled)

    def run(
        self,
        batch: RolloutBatch | ScoreRequest,
        prompts: Sequence[Prompt] | SharedPrefix,
        prompt_lengths: Sequence[int],
        compute: Callable[[MicroBatch, PackedStates], Result],
        *,
        first: int = 0,
    ) -> Iterator[tuple[MicroBatch, Result]]:
        """Run the policy over a batch.

        Args:
            batch: The completions.
            prompts: Prompts to read, or the prefix that an earlier pass made of them.
            prompt_lengths: Tokens of each prompt.
            compute: Called with each micro-batch and its states, under autocast.
            first: Index of the problem that the first prompt belongs to.

        Yields:
            Each micro-batch and what `compute` returned for it.
        """
        for part in micro_batches(batch, prompt_lengths, self.micro_batch_tokens, first=first):
            with self.autocast():
                if isinstance(prompts, SharedPrefix):
                    source = prompts.select(part.problems)
                else:
                    source = prompts[part.problems]
                states = self.policy.score(
                    source, batch.token_ids[part.tokens], batch.lengths[part.rollouts]
                )
                result = compute(part, states)
            yield part, result


def limit_kernel_caches() -> None:
    """Bound the compiled bfloat16 products that a CPU process caches.

    oneDNN compiles one kernel for every shape, and torch's wrapper keeps another copy: 0.58 MB
    each, up to 1,024 of them, and completions make new shapes with every step. Both read these
    variables at their first product. Values that the user has set are left alone.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(NUM_KERNELS))

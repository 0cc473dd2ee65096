"""What a lesson teaches: advantages per token, and how a batch is cut into micro-batches.

Runs no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from copd.config import DistillConfig, LossConfig, SampledDistill
from copd.functional import (
    domain_scale,
    group_relative,
    reward_extrapolation,
    sampled_reverse_kl,
)
from copd.types import RolloutBatch, ScoreRequest, TrainingBatch


@dataclass(frozen=True)
class MicroBatch:
    """A run of whole problems of a batch, as slices of its axes."""

    problems: slice
    """Among those whose prompts were given."""
    rollouts: slice
    tokens: slice


def micro_batches(
    batch: RolloutBatch | ScoreRequest,
    prompt_lengths: Sequence[int],
    max_tokens: int,
    *,
    first: int = 0,
) -> Iterator[MicroBatch]:
    """Cuts a batch into parts of at most `max_tokens` tokens, one problem at least.

    Where the prompts of a run of its problems are given, of these: from the `first` one on.
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


def completions_of(batch: RolloutBatch | ScoreRequest, part: MicroBatch) -> list[list[np.ndarray]]:
    """The part's completions, a list per problem."""
    lengths = batch.lengths[part.rollouts]
    rows = np.split(batch.token_ids[part.tokens], np.cumsum(lengths)[:-1])
    group_size = len(batch.lengths) // len(batch.problems)
    return [rows[start : start + group_size] for start in range(0, len(rows), group_size)]


def reward_advantages(batch: RolloutBatch, loss: LossConfig) -> Float[Tensor, "P G"]:
    """The paper's A_i from a batch's rewards."""
    return group_relative(
        torch.from_numpy(batch.rewards), eps=loss.advantage_eps, scale=loss.scale_advantages
    )


def token_advantages(
    lessons: Sequence[TrainingBatch], loss: LossConfig, distill: DistillConfig
) -> list[Float[Tensor, "N"] | None]:
    """One advantage per token for every lesson: A_i of its completion (RLVR), or beta * delta_t
    (OPD).

    None for the OPD lessons when distillation is a direct loss and needs no advantage.
    """
    signals: list[Tensor | None] = []
    for lesson in lessons:
        batch = lesson.batch
        if lesson.scores is None:
            advantages = reward_advantages(batch, loss).flatten()
            signals.append(advantages.repeat_interleave(torch.from_numpy(batch.lengths)))
        elif isinstance(distill, SampledDistill):
            signals.append(_delta(lesson, distill))
        else:
            signals.append(None)
    if isinstance(distill, SampledDistill) and distill.match_scale:
        taught = [
            s for s, lesson in zip(signals, lessons, strict=True) if lesson.scores is not None
        ]
        spread = (
            float(torch.cat([s for s in taught if s is not None]).std(correction=0))
            if taught
            else 0.0
        )
        signals = [
            domain_scale(s, spread) if s is not None and lesson.scores is not None else s
            for s, lesson in zip(signals, lessons, strict=True)
        ]
    return [
        s if s is None or lesson.scores is None else lesson.beta * s
        for s, lesson in zip(signals, lessons, strict=True)
    ]


def _delta(lesson: TrainingBatch, distill: SampledDistill) -> Float[Tensor, "N"]:
    assert lesson.scores is not None, "only a scored batch has a delta"
    teacher = torch.from_numpy(lesson.scores.logprobs)
    delta = sampled_reverse_kl(
        student_logprobs=torch.from_numpy(lesson.batch.logprobs),
        teacher_logprobs=teacher,
        clamp=distill.log_ratio_clamp,
    )
    if lesson.ref_logprobs is None:
        return delta
    return reward_extrapolation(
        delta,
        teacher_logprobs=teacher,
        ref_logprobs=torch.from_numpy(lesson.ref_logprobs),
        strength=distill.extrapolation,
    )

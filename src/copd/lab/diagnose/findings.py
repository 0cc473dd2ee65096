"""From values per token to means with intervals: per domain, suite and position. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copd.lab.diagnose.verdict import Verdict
from copd.monitor.results import DomainResult, Estimate, mean_interval
from copd.types import ProbeRollouts, TokenDivergence

NUM_BINS = 8
"""Stretches of a completion with about equally many tokens each."""

LABELS = {
    "overlap": "overlap@k",
    "student_top_under_teacher": "teacher on student's top k",
    "teacher_top_under_student": "student on teacher's top k",
    "reverse_kl": "KL(student || teacher)",
    "forward_kl": "KL(teacher || student)",
    "symmetric_kl": "symmetric KL",
    "student_entropy": "entropy, student",
    "teacher_entropy": "entropy, teacher",
    "entropy_gap": "entropy gap",
    "delta": "delta",
}
"""What is measured at every probed token of the student's own rollouts, in words."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The probed tokens of one domain, one value each; all of shape `M`."""

    problem: NDArray[np.int64]
    """Place of its problem."""

    position: NDArray[np.int64]
    """Place in its completion, from 1."""

    values: Mapping[str, NDArray[np.float32]]
    """By the names of `LABELS`."""


@dataclass(frozen=True)
class Measured:
    """Means over some tokens; every problem that has any weighs the same."""

    num_problems: int
    num_tokens: int
    means: Mapping[str, Estimate]
    """By the names of `LABELS`."""


@dataclass(frozen=True)
class GroupMeasurement:
    """A domain or a suite: what the tokens are like, and how many answers are right."""

    measured: Measured
    accuracy: Mapping[str, Estimate]
    """Of `student` and `teacher`, each on its own rollouts, and their paired `difference`."""


@dataclass(frozen=True)
class Bin:
    """Positions `first` to `last` of a completion."""

    first: int
    last: int
    measured: Measured


@dataclass(frozen=True)
class DomainDiagnosis:
    """All that is found on one domain."""

    whole: GroupMeasurement
    suites: Mapping[str, GroupMeasurement]
    bins: tuple[Bin, ...]
    is_exact: bool
    """Whether the KLs are over the whole vocabulary, and no lower bounds."""

    verdict: Verdict


@dataclass(frozen=True)
class Diagnosis:
    """A student, a teacher and what was found, with what is needed to find it again."""

    student: str
    teacher: str
    overlap_k: int
    split: str
    seed: int
    num_samples: int
    domains: Mapping[str, DomainDiagnosis]


def probed_tokens(portrait: ProbeRollouts, token_divergences: TokenDivergence) -> Tokens:
    """Where the student's probes are, and what both models are like there."""
    ends = np.cumsum(portrait.lengths)
    rollout = np.searchsorted(ends, portrait.probes, side="right")
    return Tokens(
        problem=rollout // (len(portrait.lengths) // len(portrait.problems)),
        position=portrait.probes - (ends - portrait.lengths)[rollout] + 1,
        values={
            "overlap": token_divergences.overlap,
            "student_top_under_teacher": token_divergences.portrait_top,
            "teacher_top_under_student": token_divergences.other_top,
            "reverse_kl": token_divergences.reverse_kl,
            "forward_kl": token_divergences.forward_kl,
            "symmetric_kl": token_divergences.reverse_kl + token_divergences.forward_kl,
            "student_entropy": portrait.entropies,
            "teacher_entropy": token_divergences.entropies,
            "entropy_gap": token_divergences.entropies - portrait.entropies,
            "delta": token_divergences.logprobs - portrait.logprobs,
        },
    )


def measure(tokens: Tokens, chosen: NDArray[np.bool_]) -> Measured:
    """Means per problem, then over problems: those are independent, tokens are not."""
    _, place = np.unique(tokens.problem[chosen], return_inverse=True)
    counts = np.bincount(place)
    return Measured(
        num_problems=len(counts),
        num_tokens=int(chosen.sum()),
        means={
            name: mean_interval((np.bincount(place, weights=values[chosen]) / counts).tolist())
            for name, values in tokens.values.items()
        },
    )


def by_position(tokens: Tokens) -> tuple[Bin, ...]:
    """The completion cut at quantiles of the probes' positions; short ones have fewer bins."""
    shares = np.arange(1, NUM_BINS + 1) / NUM_BINS
    lasts = np.unique(np.quantile(tokens.position, shares, method="higher")).astype(int)
    firsts = [1, *(lasts[:-1] + 1).tolist()]
    place = np.searchsorted(lasts, tokens.position)
    return tuple(
        Bin(first, int(last), measure(tokens, place == number))
        for number, (first, last) in enumerate(zip(firsts, lasts, strict=True))
    )


def by_suite(
    tokens: Tokens, student: DomainResult, teacher: DomainResult
) -> dict[str, GroupMeasurement]:
    """The suites whose problems have a probed token."""
    suites = np.array(student.suites)
    found = dict.fromkeys(suites[np.unique(tokens.problem)].tolist())
    return {
        suite: GroupMeasurement(
            measure(tokens, suites[tokens.problem] == suite),
            accuracies(student.of_suite(suite), teacher.of_suite(suite)),
        )
        for suite in found
    }


def accuracies(student: tuple[float, ...], teacher: tuple[float, ...]) -> dict[str, Estimate]:
    """Shares of correct rollouts, and how far the teacher is ahead on the same problems."""
    difference = np.subtract(teacher, student).tolist()
    return {
        "student": mean_interval(student),
        "teacher": mean_interval(teacher),
        "difference": mean_interval(difference),
    }

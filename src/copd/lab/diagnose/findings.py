"""The findings of a diagnosis: means with intervals per domain, suite and position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from copd.lab.diagnose.verdict import Verdict
from copd.monitor.results import DomainResult, Estimate, mean_interval, paired_difference
from copd.types import ProbeRollouts, TokenDivergence

NUM_BINS = 8
"""Bins of positions with about equally many tokens each."""

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
"""The measures at every probed token of the student's rollouts, and their labels."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The M probed tokens of one domain."""

    problem: NDArray[np.int64]
    """Shape `M`, the index of the problem."""
    position: NDArray[np.int64]
    """Shape `M`, the position in the completion, from 1."""
    values: Mapping[str, NDArray[np.float32]]
    """Shape `M` each, by the names of `LABELS`."""


@dataclass(frozen=True)
class TokenSummary:
    """Means over some tokens, in which all problems weigh the same."""

    num_problems: int
    num_tokens: int
    means: Mapping[str, Estimate]
    """By the names of `LABELS`."""


@dataclass(frozen=True)
class GroupMeasurement:
    """The tokens and accuracies of a domain or a suite."""

    summary: TokenSummary
    accuracy: Mapping[str, Estimate]
    """Of `student` and `teacher`, each on its own rollouts, and their paired `difference`."""


@dataclass(frozen=True)
class Bin:
    """The tokens at positions `first` to `last` of a completion."""

    first: int
    last: int
    summary: TokenSummary


@dataclass(frozen=True)
class DomainDiagnosis:
    """The findings on one domain."""

    whole: GroupMeasurement
    suites: Mapping[str, GroupMeasurement]
    bins: tuple[Bin, ...]
    is_exact: bool
    """Whether the KLs are over the whole vocabulary; otherwise they are lower bounds."""
    verdict: Verdict


@dataclass(frozen=True)
class Diagnosis:
    """The findings on a student and a teacher, and the settings that reproduce them."""

    student: str
    teacher: str
    overlap_k: int
    split: str
    seed: int
    num_samples: int
    domains: Mapping[str, DomainDiagnosis]


def probed_tokens(student: ProbeRollouts, teacher: TokenDivergence) -> Tokens:
    """Locate the probes of the student's rollouts, and collect the measures there."""
    ends = np.cumsum(student.lengths)
    rollout = np.searchsorted(ends, student.probes, side="right")
    return Tokens(
        problem=rollout // (len(student.lengths) // len(student.problems)),
        position=student.probes - (ends - student.lengths)[rollout] + 1,
        values={
            "overlap": teacher.overlap,
            "student_top_under_teacher": teacher.own_top_mass,
            "teacher_top_under_student": teacher.other_top_mass,
            "reverse_kl": teacher.reverse_kl,
            "forward_kl": teacher.forward_kl,
            "symmetric_kl": teacher.reverse_kl + teacher.forward_kl,
            "student_entropy": student.entropies,
            "teacher_entropy": teacher.entropies,
            "entropy_gap": teacher.entropies - student.entropies,
            "delta": teacher.logprobs - student.logprobs,
        },
    )


def summarize_tokens(tokens: Tokens, chosen: NDArray[np.bool_]) -> TokenSummary:
    """Average the chosen tokens per problem, then over problems, which are independent."""
    _, place = np.unique(tokens.problem[chosen], return_inverse=True)
    counts = np.bincount(place)
    return TokenSummary(
        num_problems=len(counts),
        num_tokens=int(chosen.sum()),
        means={
            name: mean_interval((np.bincount(place, weights=values[chosen]) / counts).tolist())
            for name, values in tokens.values.items()
        },
    )


def by_position(tokens: Tokens) -> tuple[Bin, ...]:
    """Bin the tokens at quantiles of their positions; short completions have fewer bins."""
    shares = np.arange(1, NUM_BINS + 1) / NUM_BINS
    lasts = np.unique(np.quantile(tokens.position, shares, method="higher")).astype(int)
    firsts = [1, *(lasts[:-1] + 1).tolist()]
    place = np.searchsorted(lasts, tokens.position)
    return tuple(
        Bin(first, int(last), summarize_tokens(tokens, place == number))
        for number, (first, last) in enumerate(zip(firsts, lasts, strict=True))
    )


def by_suite(
    tokens: Tokens, student: DomainResult, teacher: DomainResult
) -> dict[str, GroupMeasurement]:
    """Measure every suite whose problems have a probed token."""
    suites = np.array(student.suites)
    found = dict.fromkeys(suites[np.unique(tokens.problem)].tolist())
    return {
        suite: GroupMeasurement(
            summarize_tokens(tokens, suites[tokens.problem] == suite),
            accuracies(student.of_suite(suite), teacher.of_suite(suite)),
        )
        for suite in found
    }


def accuracies(student: Sequence[float], teacher: Sequence[float]) -> dict[str, Estimate]:
    """Return the mean accuracies, and how far the teacher is ahead on the same problems."""
    return {
        "student": mean_interval(student),
        "teacher": mean_interval(teacher),
        "difference": paired_difference(teacher, student),
    }

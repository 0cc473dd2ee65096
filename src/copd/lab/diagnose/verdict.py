"""Whether a student is likely to absorb a teacher: rules of thumb on a few estimates.

Knows no models; docs/diagnose.md states the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from copd.monitor.results import Estimate

KEPT_OVERLAP = 0.90
"""The paper's branches keep an overlap@10 above it while they evolve together."""

SAME_OVERLAP = 0.99
"""Ours: from here up, and with a symmetric KL up to `SAME_KL` nats, two policies are one."""
SAME_KL = 0.01

WORDS = {
    "likely": "OPD from this teacher is likely to be absorbed",
    "doubtful": "It is doubtful that OPD from this teacher is absorbed well",
    "unclear": "These measurements do not decide whether OPD from this teacher would help",
    "nothing to learn": "There is nothing to learn: the teacher is not better than the student",
    "nothing to teach": "There is nothing to teach: student and teacher hardly differ",
}
"""The verdicts, in words. All of them are rules of thumb."""


@dataclass(frozen=True)
class Verdict:
    """A key of `WORDS`, and why."""

    word: str
    reasons: tuple[str, ...]


def judge(
    overlap: Estimate,
    symmetric_kl: Estimate,
    accuracy: Mapping[str, Estimate],
    positions: Sequence[tuple[int, int, Estimate]],
    *,
    overlap_k: int,
) -> Verdict:
    """One domain's verdict; `positions` are first and last token of bins with their overlap."""
    is_same = overlap.mean >= SAME_OVERLAP and symmetric_kl.mean <= SAME_KL
    difference = accuracy["difference"]
    if is_same:
        word = "nothing to teach"
    elif difference.high < 0:
        word = "nothing to learn"
    elif difference.low <= 0 or overlap.low < KEPT_OVERLAP <= overlap.high:
        word = "unclear"
    else:
        word = "likely" if overlap.mean >= KEPT_OVERLAP else "doubtful"
    reasons = [
        _about_overlap(overlap, symmetric_kl, overlap_k, is_same=is_same),
        _about_accuracy(accuracy),
        *_about_positions(positions),
    ]
    return Verdict(word, tuple(reasons))


def overall(verdicts: Iterable[Verdict]) -> str:
    """All domains in one sentence."""
    words = {verdict.word for verdict in verdicts}
    return WORDS[words.pop()] if len(words) == 1 else "The verdict differs from domain to domain"


def _about_overlap(
    overlap: Estimate, symmetric_kl: Estimate, overlap_k: int, *, is_same: bool
) -> str:
    measured = f"the top {overlap_k} tokens overlap by {_within(overlap)}"
    if is_same:
        return f"They are nearly the same policy: {measured}, symmetric KL {symmetric_kl.mean:.2g}."
    kept = f"{KEPT_OVERLAP:.2f}, which the paper's branches kept at k = 10"
    if overlap.low < KEPT_OVERLAP <= overlap.high:
        return f"They may behave alike enough: {measured}, about {kept}; more problems would tell."
    if overlap.mean >= KEPT_OVERLAP:
        return f"They behave alike: {measured}, at least {kept}."
    return f"They behave differently: {measured}, less than {kept}; less is absorbed then."


def _about_accuracy(accuracy: Mapping[str, Estimate]) -> str:
    student, teacher, difference = (accuracy[n] for n in ("student", "teacher", "difference"))
    low, high = 100 * difference.low, 100 * difference.high
    measured = (
        f"{100 * teacher.mean:.1f} against {100 * student.mean:.1f} % correct, "
        f"{100 * difference.mean:+.1f} points [{low:+.1f}, {high:+.1f}]"
    )
    if difference.low > 0:
        return f"The teacher is better: {measured}."
    if difference.high < 0:
        return f"The teacher is not better: {measured}."
    return f"It is not sure that the teacher is better: {measured}; more problems would tell."


def _about_positions(positions: Sequence[tuple[int, int, Estimate]]) -> list[str]:
    """Only if the overlap is surely lower at the end than at the beginning, and low there."""
    (first, upto, start), (late, last, end) = positions[0], positions[-1]
    if not (start.low > end.high and end.mean < KEPT_OVERLAP):
        return []
    return [
        f"They drift apart along a completion: the overlap is {start.mean:.2f} at tokens {first} "
        f"to {upto} and {end.mean:.2f} at tokens {late} to {last}."
    ]


def _within(e: Estimate) -> str:
    return f"{e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]"

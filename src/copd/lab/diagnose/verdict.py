"""Rules of thumb on whether a student will absorb a teacher; docs/diagnose.md states them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from copd.monitor.results import Estimate

PAPER_OVERLAP = 0.90
"""The overlap@10 above which the paper's branches stay while they evolve together."""

SAME_OVERLAP = 0.99
"""Our choice: from this overlap on, with a symmetric KL of at most `SAME_KL` nats, two policies
count as the same."""
SAME_KL = 0.01

WORDS = {
    "likely": "The student is likely to absorb OPD from this teacher",
    "doubtful": "The student may not absorb OPD from this teacher well",
    "unclear": "The measurements do not decide whether OPD from this teacher would help",
    "nothing to learn": "There is nothing to learn: the teacher is not better than the student",
    "nothing to teach": "There is nothing to teach: student and teacher hardly differ",
}
"""The verdicts, and the sentences that express them."""


@dataclass(frozen=True)
class Verdict:
    """A key of `WORDS` and the reasons for it."""

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
    """Judge one domain; `positions` holds the first and last token of bins and their overlap."""
    is_same = overlap.mean >= SAME_OVERLAP and symmetric_kl.mean <= SAME_KL
    difference = accuracy["difference"]
    if is_same:
        word = "nothing to teach"
    elif difference.high < 0:
        word = "nothing to learn"
    elif difference.low <= 0 or overlap.low < PAPER_OVERLAP <= overlap.high:
        word = "unclear"
    else:
        word = "likely" if overlap.mean >= PAPER_OVERLAP else "doubtful"
    reasons = [
        _about_overlap(overlap, symmetric_kl, overlap_k, is_same=is_same),
        _about_accuracy(accuracy),
        *_about_positions(positions),
    ]
    return Verdict(word, tuple(reasons))


def overall(verdicts: Iterable[Verdict]) -> str:
    """Summarize the verdicts of all domains in one sentence."""
    words = {verdict.word for verdict in verdicts}
    return WORDS[words.pop()] if len(words) == 1 else "The verdict differs between domains"


def _about_overlap(
    overlap: Estimate, symmetric_kl: Estimate, overlap_k: int, *, is_same: bool
) -> str:
    measured = (
        f"the top {overlap_k} tokens overlap by {overlap.mean:.3f} "
        f"[{overlap.low:.3f}, {overlap.high:.3f}]"
    )
    if is_same:
        return f"They are nearly the same policy: {measured}, symmetric KL {symmetric_kl.mean:.2g}."
    paper = f"{PAPER_OVERLAP:.2f}, above which the paper's branches stay at k = 10"
    if overlap.low < PAPER_OVERLAP <= overlap.high:
        return (
            f"They may behave alike enough: {measured}, about {paper}; more problems would decide."
        )
    if overlap.mean >= PAPER_OVERLAP:
        return f"They behave alike: {measured}, at least {paper}."
    return f"They behave differently: {measured}, less than {paper}; such a student absorbs less."


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
    return f"The teacher may not be better: {measured}; more problems would decide."


def _about_positions(positions: Sequence[tuple[int, int, Estimate]]) -> list[str]:
    """Return a reason if the overlap is low at the end, and surely lower than at the start."""
    (first, upto, start), (late, last, end) = positions[0], positions[-1]
    if not (start.low > end.high and end.mean < PAPER_OVERLAP):
        return []
    return [
        f"They drift apart along a completion: the overlap is {start.mean:.2f} at tokens {first} "
        f"to {upto} and {end.mean:.2f} at tokens {late} to {last}."
    ]

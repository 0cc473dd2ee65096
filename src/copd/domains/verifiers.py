"""Verifiers: pure functions from a completion's text and the reference answer to a reward.

No model, no I/O.
"""

from __future__ import annotations

ANSWER_MARK = "#"
"""What precedes the final answer in a completion, as in GSM8K's solutions."""


def final_answer(text: str) -> str | None:
    """What follows the last answer mark, stripped; None when there is none."""
    _, mark, answer = text.rpartition(ANSWER_MARK)
    return answer.strip() if mark else None


def exact(text: str, answer: str) -> float:
    """1.0 when the final answer is the reference to the letter, else 0.0, also without a mark."""
    return float(final_answer(text) == answer)

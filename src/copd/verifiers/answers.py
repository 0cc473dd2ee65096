"""What a completion answers, and whether it equals the reference as text or as a number.

Pure functions: no model, no I/O.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from copd.verifiers.base import Pair

ANSWER_MARK = "#"
"""What precedes the final answer in a completion, as in GSM8K's solutions."""

_NUMBER = re.compile(
    r"(?<![0-9])[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def final_answer(text: str, mark: str = ANSWER_MARK) -> str | None:
    """What follows the last answer mark, stripped; None when there is none.

    An empty mark makes the whole text the answer. Where the mark is a tag such as `<answer>`, the
    answer ends at `</answer>`.
    """
    if not mark:
        return text.strip()
    _, found, answer = text.rpartition(mark)
    if mark[0] == "<" and mark[-1] == ">":
        answer = answer.partition(f"</{mark[1:]}")[0]
    return answer.strip() if found else None


def exact(text: str, answer: str, mark: str = ANSWER_MARK) -> float:
    """1.0 when the final answer is the reference to the letter, else 0.0, also without a mark."""
    return float(final_answer(text, mark) == answer)


def numeric(text: str, answer: str, *, mark: str = ANSWER_MARK, tolerance: float = 0.0) -> float:
    """1.0 when the last number of the final answer is within `tolerance` of the reference's."""
    given, wanted = last_number(final_answer(text, mark) or ""), last_number(answer)
    return float(given is not None and wanted is not None and abs(given - wanted) <= tolerance)


def last_number(text: str) -> float | None:
    """The last finite decimal number in a text: `1,080`, `-3.5`; a sign after a digit is a minus
    between two numbers."""
    found = _NUMBER.findall(text)
    value = float(found[-1].replace(",", "")) if found else math.inf
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Exact:
    """`exact`, as configured."""

    mark: str

    def reward(self, text: str, answer: str) -> float:
        return exact(text, answer, self.mark)

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        return [self.reward(*pair) for pair in pairs]

    def extract_answer(self, text: str) -> str:
        return final_answer(text, self.mark) or ""

    def reference_error(self, answer: str) -> str:
        if answer == final_answer(self.mark + answer, self.mark):
            return ""
        return f"answer {answer[:40]!r} has spaces around it or the mark {self.mark!r} in it"

    def format_reference(self, answer: str) -> str:
        return self.mark + answer


@dataclass(frozen=True)
class Numeric:
    """`numeric`, as configured."""

    mark: str
    tolerance: float

    def reward(self, text: str, answer: str) -> float:
        return numeric(text, answer, mark=self.mark, tolerance=self.tolerance)

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        return [self.reward(*pair) for pair in pairs]

    def extract_answer(self, text: str) -> str:
        value = last_number(final_answer(text, self.mark) or "")
        return "" if value is None else f"{value:.12g}"

    def reference_error(self, answer: str) -> str:
        return "" if last_number(answer) is not None else f"answer {answer[:40]!r} has no number"

    def format_reference(self, answer: str) -> str:
        return self.mark + answer

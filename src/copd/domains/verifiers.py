"""Verifiers: pure functions from a completion's text and the reference answer to a reward.

No model, no I/O.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

from copd.config import ExactVerifier, NumericVerifier, VerifierConfig

ANSWER_MARK = "#"
"""What precedes the final answer in a completion, as in GSM8K's solutions."""

_NUMBER = re.compile(
    r"(?<![0-9])[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def final_answer(text: str, mark: str = ANSWER_MARK) -> str | None:
    """What follows the last answer mark, stripped; None when there is none.

    An empty mark makes the whole text the answer.
    """
    if not mark:
        return text.strip()
    _, found, answer = text.rpartition(mark)
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


class Verifier(Protocol):
    """How a domain judges completions."""

    def reward(self, text: str, answer: str) -> float:
        """In [0, 1]; what cannot be parsed earns 0.0."""
        ...

    def reading(self, text: str) -> str:
        """What it takes for the answer in a completion; empty where it finds none."""
        ...

    def objection(self, answer: str) -> str:
        """Why no completion could ever match this reference; empty where one can."""
        ...


@dataclass(frozen=True)
class Exact:
    """`exact`, as configured."""

    mark: str

    def reward(self, text: str, answer: str) -> float:
        return exact(text, answer, self.mark)

    def reading(self, text: str) -> str:
        return final_answer(text, self.mark) or ""

    def objection(self, answer: str) -> str:
        if answer == final_answer(self.mark + answer, self.mark):
            return ""
        return f"answer {answer[:40]!r} has spaces around it or the mark {self.mark!r} in it"


@dataclass(frozen=True)
class Numeric:
    """`numeric`, as configured."""

    mark: str
    tolerance: float

    def reward(self, text: str, answer: str) -> float:
        return numeric(text, answer, mark=self.mark, tolerance=self.tolerance)

    def reading(self, text: str) -> str:
        value = last_number(final_answer(text, self.mark) or "")
        return "" if value is None else f"{value:.12g}"

    def objection(self, answer: str) -> str:
        return "" if last_number(answer) is not None else f"answer {answer[:40]!r} has no number"


def load_verifier(config: VerifierConfig) -> Verifier:
    """The configured verifier."""
    match config:
        case ExactVerifier():
            return Exact(config.mark)
        case NumericVerifier():
            return Numeric(config.mark, config.tolerance)

"""Final answers in completions, compared with the reference as text or as numbers."""

import math
import re
from dataclasses import dataclass

from copd.verifiers.base import Verifier

ANSWER_MARK = "#"
"""Precedes the final answer in a completion, as in the solutions of GSM8K."""

_NUMBER = re.compile(
    r"(?<![0-9])[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


def final_answer(text: str, mark: str = ANSWER_MARK) -> str | None:
    """Return the text after the last answer mark.

    Args:
        text: The completion.
        mark: What precedes an answer. Empty makes the whole text the answer; after a tag such as
            `<answer>`, the answer ends at `</answer>`.

    Returns:
        The stripped answer, or None if there is no mark.
    """
    if not mark:
        return text.strip()
    _, found, answer = text.rpartition(mark)
    if mark[0] == "<" and mark[-1] == ">":
        answer = answer.partition(f"</{mark[1:]}")[0]
    return answer.strip() if found else None


def exact(text: str, answer: str, mark: str = ANSWER_MARK) -> float:
    """Compare the final answer with the reference, character by character.

    Args:
        text: The completion.
        answer: The reference.
        mark: What precedes the final answer, as in `final_answer`.

    Returns:
        1.0 if they are equal, else 0.0.
    """
    return float(final_answer(text, mark) == answer)


def last_number(text: str) -> float | None:
    """Find the last decimal number in a text, such as `1,080` or `-3.5`.

    Args:
        text: Any text. A sign after a digit is a minus between two numbers.

    Returns:
        The number, or None if there is none or it is not finite.
    """
    found = _NUMBER.findall(text)
    value = float(found[-1].replace(",", "")) if found else math.inf
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class MarkedVerifier(Verifier):
    """A verifier that looks for the answer after the last mark."""

    mark: str

    def marked_answer(self, text: str) -> str:
        """Return the text after the last mark; "" if there is none."""
        return final_answer(text, self.mark) or ""

    def format_reference(self, answer: str) -> str:
        return self.mark + answer


@dataclass(frozen=True)
class Exact(MarkedVerifier):
    """1.0 if the final answer equals the reference, as in `exact`."""

    def reward(self, text: str, answer: str) -> float:
        return exact(text, answer, self.mark)

    def extract_answer(self, text: str) -> str:
        return self.marked_answer(text)

    def reference_error(self, answer: str) -> str:
        if answer == final_answer(self.mark + answer, self.mark):
            return ""
        return f"answer {answer[:40]!r} has spaces around it or the mark {self.mark!r} in it"


@dataclass(frozen=True)
class Numeric(MarkedVerifier):
    """1.0 if the last number of the final answer is within `tolerance` of the reference's."""

    tolerance: float = 0.0

    def reward(self, text: str, answer: str) -> float:
        value, expected = last_number(self.marked_answer(text)), last_number(answer)
        if value is None or expected is None:
            return 0.0
        return float(abs(value - expected) <= self.tolerance)

    def extract_answer(self, text: str) -> str:
        value = last_number(self.marked_answer(text))
        return "" if value is None else f"{value:.12g}"

    def reference_error(self, answer: str) -> str:
        return "" if last_number(answer) is not None else f"answer {answer[:40]!r} has no number"

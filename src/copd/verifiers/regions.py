"""Letters, spans of time and boxes in completions, and how well they match the reference.

Pure functions: no model, no I/O. Patterns take linear time on hostile text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from copd.verifiers.answers import final_answer
from copd.verifiers.base import Pair

_NUMBER = r"(?<![\w.])[-+]?(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})(?![0-9])"
_CLOCK = r"(?<![\w.:])(?:[0-9]{1,3}:)?[0-9]{1,3}:[0-9]{2}(?:\.[0-9]{1,9})?(?![0-9:])"
_TIME = re.compile(f"{_CLOCK}|{_NUMBER}")
_COORDINATE = re.compile(_NUMBER)
_GROUP = re.compile(r"[\[(]([^\[\]()]*)[\])]")

_BOXED = r"\\boxed\{(?:\\text\{|\\textbf\{|\\mathrm\{)?\s*\(?"
_STATED = r"\b(?i:answer|option|choice)\b(?i:\s+is)?\s*[:=]?\s*(?i:option\s+)?[(\[*\"'{$]{0,4}"
_LABEL = r"\A[(\[*]{0,3}%s(?:[)\]*]{1,3}|[.:])(?![\w)])"
_BRACKETS = r"(?:\(|\[|\*\*)%s(?=\)|\]|\*\*)"

_WINDOW = 4096
"""A letter, span or box is looked for in so many of the last characters."""


@dataclass(frozen=True)
class Choice:
    """The letter of a multiple choice."""

    mark: str
    letters: str

    def reward(self, text: str, answer: str) -> float:
        given = self._letter(text)
        return float(given is not None and given == chosen_letter(answer, self.letters))

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        return [self.reward(*pair) for pair in pairs]

    def extract_answer(self, text: str) -> str:
        return self._letter(text) or ""

    def reference_error(self, answer: str) -> str:
        if chosen_letter(answer, self.letters):
            return ""
        return f"answer {answer[:40]!r} is none of the letters {self.letters}"

    def format_reference(self, answer: str) -> str:
        return self.mark + answer

    def _letter(self, text: str) -> str | None:
        return chosen_letter(final_answer(text, self.mark) or "", self.letters)


def chosen_letter(text: str, letters: str) -> str | None:
    """The letter a text decides for; None where it names none, or several in one breath.

    In this order: the whole text (`B`, `(b)`, `B.`), the last `answer is B`, `Answer: (B)` or
    `\\boxed{B}`, a label at its beginning (`B. Paris`), the last letter in brackets or bold.
    """
    text = text.strip()[-_WINDOW:]
    one = f"([{letters}])"
    whole = re.fullmatch(rf"[(\[*\s\"']{{0,4}}{one}[)\]*.:,\s\"']{{0,4}}", text, re.IGNORECASE)
    if whole:
        return whole[1].upper()
    for pattern in (rf"(?:{_BOXED}|{_STATED}){one}(?!\w)", _LABEL % one, _BRACKETS % one):
        found = list(re.finditer(pattern, text))
        if found:
            last = found[-1]
            return None if _goes_on(text, last.end(1), letters) else last[1]
    return None


def _goes_on(text: str, end: int, letters: str) -> bool:
    """Whether another letter is offered along with the one that ends here: `A or B`."""
    between = r"[)\]*\"'}$]{0,4}\s*(?:,|/|;|&|\bor\b|\band\b)\s*(?:or\s+|and\s+)?[(\[*]{0,3}"
    return re.compile(rf"{between}[{letters}](?!\w)").match(text, end) is not None


@dataclass(frozen=True)
class Interval:
    """Intersection over union of two spans of time."""

    mark: str
    threshold: float | None

    def reward(self, text: str, answer: str) -> float:
        given, wanted = self._span(text), span(answer)
        return _earned(span_iou(given, wanted) if given and wanted else 0.0, self.threshold)

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        return [self.reward(*pair) for pair in pairs]

    def extract_answer(self, text: str) -> str:
        return _listed(self._span(text))

    def reference_error(self, answer: str) -> str:
        found = span(answer)
        if found and found[0] < found[1]:
            return ""
        return f"answer {answer[:40]!r} is no span of time with its start before its end"

    def format_reference(self, answer: str) -> str:
        return self.mark + answer

    def _span(self, text: str) -> tuple[float, ...] | None:
        return span(final_answer(text, self.mark) or "")


@dataclass(frozen=True)
class Box:
    """Intersection over union of two rectangles."""

    mark: str
    form: Literal["corners", "size"]
    threshold: float | None

    def reward(self, text: str, answer: str) -> float:
        given, wanted = self._corners(self._box(text)), self._corners(box(answer))
        return _earned(box_iou(given, wanted) if given and wanted else 0.0, self.threshold)

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        return [self.reward(*pair) for pair in pairs]

    def extract_answer(self, text: str) -> str:
        return _listed(self._box(text))

    def reference_error(self, answer: str) -> str:
        found = self._corners(box(answer))
        if found and found[0] < found[2] and found[1] < found[3]:
            return ""
        return f"answer {answer[:40]!r} is no box of four numbers with an area"

    def format_reference(self, answer: str) -> str:
        return self.mark + answer

    def _box(self, text: str) -> tuple[float, ...] | None:
        return box(final_answer(text, self.mark) or "")

    def _corners(self, found: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if found is None or self.form == "corners":
            return found
        x, y, width, height = found
        return x, y, x + width, y + height


def span(text: str) -> tuple[float, ...] | None:
    """The last two times of a text, of its last brackets that hold just two where there are such:
    seconds, `mm:ss` or `hh:mm:ss`."""
    return _last(text, 2, _TIME)


def box(text: str) -> tuple[float, ...] | None:
    """The last four numbers of a text, of its last brackets that hold just four where such are."""
    return _last(text, 4, _COORDINATE)


def span_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """|A and B| / |A or B| of two spans; a reversed or empty one has nothing in common."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    if common <= 0 or one[0] >= one[1] or other[0] >= other[1]:
        return 0.0
    return common / (one[1] - one[0] + other[1] - other[0] - common)


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """|A and B| / |A or B| of two boxes x1, y1, x2, y2; a reversed one has nothing in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0 or not (_is_upright(one) and _is_upright(other)):
        return 0.0
    common = width * height
    return common / (_area(one) + _area(other) - common)


def _is_upright(corners: Sequence[float]) -> bool:
    return corners[0] < corners[2] and corners[1] < corners[3]


def _area(corners: Sequence[float]) -> float:
    return (corners[2] - corners[0]) * (corners[3] - corners[1])


def _last(text: str, count: int, pattern: re.Pattern[str]) -> tuple[float, ...] | None:
    text = text[-_WINDOW:]
    groups = [pattern.findall(inner) for inner in _GROUP.findall(text)]
    exact = [group for group in groups if len(group) == count]
    found = exact[-1] if exact else pattern.findall(text)[-count:]
    return tuple(map(_seconds, found)) if len(found) == count else None


def _seconds(text: str) -> float:
    return math.fsum(float(p) * 60**i for i, p in enumerate(reversed(text.split(":"))))


def _earned(overlap: float, threshold: float | None) -> float:
    return overlap if threshold is None else float(overlap >= threshold)


def _listed(numbers: tuple[float, ...] | None) -> str:
    return "" if numbers is None else ", ".join(f"{number:.12g}" for number in numbers)

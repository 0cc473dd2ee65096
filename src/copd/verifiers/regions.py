"""Letters, time intervals and boxes in completions, compared with the reference.

All patterns take linear time on hostile text.
"""

import math
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from copd.verifiers.answers import MarkedVerifier

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
"""Number of last characters in which a letter, interval or box is looked for."""


@dataclass(frozen=True)
class Choice(MarkedVerifier):
    """1.0 for the right letter of a multiple choice."""

    letters: str

    def reward(self, text: str, answer: str) -> float:
        letter = self._letter(text)
        return float(letter is not None and letter == chosen_letter(answer, self.letters))

    def extract_answer(self, text: str) -> str:
        return self._letter(text) or ""

    def reference_error(self, answer: str) -> str:
        if chosen_letter(answer, self.letters):
            return ""
        return f"answer {answer[:40]!r} is none of the letters {self.letters}"

    def _letter(self, text: str) -> str | None:
        return chosen_letter(self.marked_answer(text), self.letters)


def chosen_letter(text: str, letters: str) -> str | None:
    """Return the letter that a text chooses; None if it names none, or offers several together.

    These are tried in order: the whole text (`B`, `(b)`, `B.`), the last `answer is B`,
    `Answer: (B)` or `\\boxed{B}`, a label at the start (`B. Paris`), the last letter in brackets
    or bold.
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
            return None if _has_alternative(text, last.end(1), letters) else last[1]
    return None


def _has_alternative(text: str, end: int, letters: str) -> bool:
    """Test whether another letter follows the one that ends at `end`, as in `A or B`."""
    between = r"[)\]*\"'}$]{0,4}\s*(?:,|/|;|&|\bor\b|\band\b)\s*(?:or\s+|and\s+)?[(\[*]{0,3}"
    return re.compile(rf"{between}[{letters}](?!\w)").match(text, end) is not None


@dataclass(frozen=True)
class RegionVerifier(MarkedVerifier):
    """Intersection over union with the reference, or whether it reaches a threshold."""

    threshold: float | None

    def reward(self, text: str, answer: str) -> float:
        found, expected = self._find(self.marked_answer(text)), self._find(answer)
        iou = self._iou(found, expected) if found and expected else 0.0
        return iou if self.threshold is None else float(iou >= self.threshold)

    def extract_answer(self, text: str) -> str:
        numbers = self._find(self.marked_answer(text)) or ()
        return ", ".join(f"{number:.12g}" for number in numbers)

    @abstractmethod
    def _find(self, text: str) -> tuple[float, ...] | None:
        """Return the numbers of the last region in a text."""

    @abstractmethod
    def _iou(self, one: Sequence[float], other: Sequence[float]) -> float:
        """Return intersection over union of two regions."""


@dataclass(frozen=True)
class Interval(RegionVerifier):
    """Intersection over union of two time intervals."""

    def reference_error(self, answer: str) -> str:
        found = interval(answer)
        if found and found[0] < found[1]:
            return ""
        return f"answer {answer[:40]!r} is not a time interval that starts before it ends"

    def _find(self, text: str) -> tuple[float, ...] | None:
        return interval(text)

    def _iou(self, one: Sequence[float], other: Sequence[float]) -> float:
        return interval_iou(one, other)


@dataclass(frozen=True)
class Box(RegionVerifier):
    """Intersection over union of two boxes."""

    form: Literal["corners", "size"]

    def reference_error(self, answer: str) -> str:
        found = box(answer)
        if found and _is_upright(self._corners(found)):
            return ""
        return f"answer {answer[:40]!r} is not a box of four numbers with an area"

    def _find(self, text: str) -> tuple[float, ...] | None:
        return box(text)

    def _iou(self, one: Sequence[float], other: Sequence[float]) -> float:
        return box_iou(self._corners(one), self._corners(other))

    def _corners(self, numbers: Sequence[float]) -> Sequence[float]:
        x, y, width, height = numbers
        return numbers if self.form == "corners" else (x, y, x + width, y + height)


def interval(text: str) -> tuple[float, ...] | None:
    """Find the last two times in a text, in seconds; also written `mm:ss` or `hh:mm:ss`.

    The last brackets that hold exactly two are preferred.
    """
    return _last(text, 2, _TIME)


def box(text: str) -> tuple[float, ...] | None:
    """Find the last four numbers in a text; the last brackets that hold exactly four come first."""
    return _last(text, 4, _COORDINATE)


def interval_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return intersection over union of two intervals; 0.0 if one is reversed or empty."""
    common = min(one[1], other[1]) - max(one[0], other[0])
    if common <= 0 or one[0] >= one[1] or other[0] >= other[1]:
        return 0.0
    return common / (one[1] - one[0] + other[1] - other[0] - common)


def box_iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Return intersection over union of two boxes x1, y1, x2, y2; 0.0 if one is reversed."""
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

"""What a view is drawn with: characters, sparklines, numbers as text. Knows no run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

Values = NDArray[np.float64]
"""A series; NaN where there is no value."""


@dataclass(frozen=True)
class Glyphs:
    """The characters that draw."""

    levels: str
    """From low to high, one column of a sparkline."""
    done: tuple[str, str]
    """What is done, without and with teachers."""
    ahead: tuple[str, str]
    """What is to come, without and with teachers."""
    arrow: str
    """Stands between student and teacher."""
    cut: str
    """Ends what was too long."""


UNICODE = Glyphs(
    levels="\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588",
    done=("\u2501", "\u2586"),
    ahead=("\u2500", "\u2550"),
    arrow="\u2190",
    cut="\u2026",
)
ASCII = Glyphs(levels="_.-~=+*#", done=("=", "#"), ahead=("-", ":"), arrow="<-", cut="~")


def columns(values: Values, width: int) -> Values:
    """The series as `width` means over equal shares of it; NaN where a share has no value."""
    starts = np.arange(width) * len(values) // width
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    return np.divide(sums, counts, out=np.full(width, np.nan), where=counts > 0)


def bounds(series: Sequence[Values], least: float) -> tuple[float, float]:
    """The smallest and the largest value, moved apart until `least` is between them."""
    known = np.concatenate([values[~np.isnan(values)] for values in series])
    if not len(known):
        return math.nan, math.nan
    low, high = float(known.min()), float(known.max())
    if high - low < least:
        low = max(0.0, (low + high - least) / 2)
        high = low + least
    return low, high


def sparkline(shares: Values, low: float, high: float, glyphs: Glyphs, style: str) -> Text:
    """One character per value; where none was measured the last one is repeated, dimmed."""
    marks, last, top = [], " ", len(glyphs.levels) - 1
    measured = np.flatnonzero(~np.isnan(shares))
    for value in shares[: measured[-1] + 1 if len(measured) else 0].tolist():
        if not math.isnan(value):
            last = glyphs.levels[round((value - low) / (high - low) * top)]
        marks.append((last, f"dim {style}" if math.isnan(value) else style))
    return painted(marks)


def painted(marks: Iterable[tuple[str, str]]) -> Text:
    """Characters with their styles as one text; a span costs time, so neighbours share one."""
    line = Text()
    for style, run in groupby(marks, key=itemgetter(1)):
        line.append("".join(character for character, _ in run), style=style)
    return line


def signed(value: float, digits: int) -> Text:
    """A change with its sign, green up and red down; 0 where the digits show none."""
    text = f"{value:+.{digits}f}"
    if not float(text):
        return Text("0")
    return Text(text, style="green" if value > 0 else "red")


def seconds_text(seconds: float) -> str:
    """Two digits that count: `0.31 s`, `2.4 s`, `31 s`."""
    return f"{seconds:.{0 if seconds >= 10 else 1 if seconds >= 1 else 2}f} s"


def count_text(number: int) -> str:
    """A large count in thousands, millions or billions."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * size or number >= size > 10**3:
            return f"{number / size:.1f} {unit}"
    return str(number)


def clock(seconds: float) -> str:
    """`1:05` or `2:01:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fit(text: str | Text, width: int, cut: str) -> Text:
    """Exactly `width` columns: filled with spaces, or cut with a sign that it was."""
    line = text.copy() if isinstance(text, Text) else Text(text)
    if line.cell_len > width:
        line.truncate(max(0, width - len(cut)))
        line.append(cut[:width])
    return line.append(" " * (width - line.cell_len))

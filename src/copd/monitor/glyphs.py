"""Characters, sparklines and number formats that the live view is drawn with."""

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
    """A set of characters to draw with."""

    levels: str
    """Bars of a sparkline, from low to high."""
    done: tuple[str, str]
    """Finished steps, without and with teachers."""
    ahead: tuple[str, str]
    """Steps to come, without and with teachers."""
    arrow: str
    """Between student and teacher."""
    cut: str
    """Ends a text that was cut."""


UNICODE = Glyphs(
    levels="\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588",
    done=("\u2501", "\u2586"),
    ahead=("\u2500", "\u2550"),
    arrow="\u2190",
    cut="\u2026",
)
ASCII = Glyphs(levels="_.-~=+*#", done=("=", "#"), ahead=("-", ":"), arrow="<-", cut="~")


def columns(values: Values, width: int) -> Values:
    """Average the series over `width` equal shares; NaN where a share has no value."""
    starts = np.arange(width) * len(values) // width
    known = ~np.isnan(values)
    sums = np.add.reduceat(np.where(known, values, 0.0), starts)
    counts = np.add.reduceat(known.astype(np.float64), starts)
    return np.divide(sums, counts, out=np.full(width, np.nan), where=counts > 0)


def bounds(series: Sequence[Values], least: float) -> tuple[float, float]:
    """Return the smallest and the largest value, moved apart to a distance of at least `least`."""
    known = np.concatenate([values[~np.isnan(values)] for values in series])
    if not len(known):
        return math.nan, math.nan
    low, high = float(known.min()), float(known.max())
    if high - low < least:
        low = max(0.0, (low + high - least) / 2)
        high = low + least
    return low, high


def sparkline(values: Values, low: float, high: float, glyphs: Glyphs, style: str) -> Text:
    """Draw one character per value; a missing value repeats the one before it, dimmed."""
    marks, last, top = [], " ", len(glyphs.levels) - 1
    known = np.flatnonzero(~np.isnan(values))
    for value in values[: known[-1] + 1 if len(known) else 0].tolist():
        if not math.isnan(value):
            last = glyphs.levels[round((value - low) / (high - low) * top)]
        marks.append((last, f"dim {style}" if math.isnan(value) else style))
    return painted(marks)


def painted(marks: Iterable[tuple[str, str]]) -> Text:
    """Join characters with their styles; neighbours of one style share a span, which is faster."""
    line = Text()
    for style, run in groupby(marks, key=itemgetter(1)):
        line.append("".join(character for character, _ in run), style=style)
    return line


def signed(value: float, digits: int) -> Text:
    """Format a change with its sign, green or red; `0` if it rounds to zero."""
    text = f"{value:+.{digits}f}"
    if not float(text):
        return Text("0")
    return Text(text, style="green" if value > 0 else "red")


def seconds_text(seconds: float) -> str:
    """Format seconds with two significant digits: `0.31 s`, `2.4 s`, `31 s`."""
    return f"{seconds:.{0 if seconds >= 10 else 1 if seconds >= 1 else 2}f} s"


def count_text(number: int) -> str:
    """Format a large count in thousands, millions or billions."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * size or number >= size > 10**3:
            return f"{number / size:.1f} {unit}"
    return str(number)


def clock(seconds: float) -> str:
    """Format seconds as `1:05` or `2:01:05`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fit(text: str | Text, width: int, cut: str) -> Text:
    """Pad the text to `width` columns, or cut it there and end it with `cut`."""
    line = text.copy() if isinstance(text, Text) else Text(text)
    if line.cell_len > width:
        line.truncate(max(0, width - len(cut)))
        line.append(cut[:width])
    return line.append(" " * (width - line.cell_len))

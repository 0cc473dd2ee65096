"""A summary as sheets of text cells, before any markup.

Knows no Markdown, HTML or terminal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from copd.lab.study.moments import ORACLE
from copd.lab.study.results import OVERALL
from copd.lab.study.statistics import Comparison, Summary
from copd.monitor.results import Estimate
from copd.run.cost import COUNTS

DASH = "\u2013"
"""An en dash: not measured."""

Mark = Literal["", "best", "tied", "clear", "missing"]
"""`best` is clearly ahead in its row, `tied` may be, `clear` is a difference that excludes zero."""


@dataclass(frozen=True)
class Cell:
    """One value as text."""

    text: str
    mark: Mark = ""


MISSING = Cell(DASH, "missing")


@dataclass(frozen=True)
class TableRow:
    """A row of a sheet."""

    label: str
    kind: str
    """"suite", "domain", "overall" or "column": what the label names."""

    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Sheet:
    """One table."""

    name: str
    caption: str
    corner: str
    heads: tuple[str, ...]
    lines: tuple[TableRow, ...]


def sheets(summary: Summary, reference: str | None) -> tuple[Sheet, ...]:
    """Accuracy, differences to a reference, probabilities, headroom, budgets."""
    chosen = _reference(summary, reference)
    found = [_accuracy(summary)]
    if chosen is not None and len(summary.columns) > 1:
        found += [_differences(summary, chosen), _probabilities(summary)]
    if summary.headroom:
        found.append(_headroom(summary))
    return (*found, _budgets(summary))


def _reference(summary: Summary, reference: str | None) -> str | None:
    if reference is not None and reference not in summary.columns:
        raise ValueError(
            f"the reference must be a column of the study: got {reference!r}, expected one of "
            f"{', '.join(summary.columns)}. Name one of them."
        )
    default = "copd" if "copd" in summary.trained else next(reversed(summary.trained), None)
    return reference or default


def _accuracy(summary: Summary) -> Sheet:
    lines = []
    for row in summary.rows:
        estimates = {column: summary.cells[row.name, column] for column in summary.columns}
        marks = _marks(summary, row.name)
        cells = tuple(
            MISSING if math.isnan(e.mean) else Cell(str(e), marks.get(column, ""))
            for column, e in estimates.items()
        )
        lines.append(TableRow(row.name, row.kind, cells))
    caption = f"{summary.title}: accuracy in %, with 95 % intervals"
    return Sheet("accuracy", caption, "suite", summary.columns, tuple(lines))


def _marks(summary: Summary, row: str) -> dict[str, Mark]:
    """The best trained or base column, and all that cannot be told from it."""
    means = {
        column: summary.cells[row, column].mean
        for column in summary.columns
        if column != ORACLE and not math.isnan(summary.cells[row, column].mean)
    }
    if len(means) < 2:
        return {}
    best = max(means, key=lambda column: means[column])
    compared = {c: summary.comparisons.get((row, best, c)) for c in means if c != best}
    near = [c for c, found in compared.items() if found is None or not found.is_clear]
    return dict.fromkeys([best, *near], "tied") if near else {best: "best"}


def _differences(summary: Summary, reference: str) -> Sheet:
    rows = tuple(row.name for row in summary.main_rows)
    lines = [
        TableRow(
            other, "column", tuple(_difference(summary, row, reference, other) for row in rows)
        )
        for other in summary.columns
        if other != reference
    ]
    caption = (
        f"{reference} minus each column in points, paired, with 95 % intervals, and the "
        f"probability in % that {reference} is ahead"
    )
    return Sheet("differences", caption, f"{reference} minus", rows, tuple(lines))


def _difference(summary: Summary, row: str, reference: str, other: str) -> Cell:
    found = summary.comparisons.get((row, reference, other))
    if found is None:
        return MISSING
    text = f"{signed(found.difference)} ({percent(found.probability)})"
    return Cell(text, "clear" if found.is_clear else "")


def _probabilities(summary: Summary) -> Sheet:
    lines = []
    for a in summary.columns:
        found = [summary.comparisons.get((OVERALL, a, b)) for b in summary.columns]
        cells = (
            Cell("") if a == b else _probability(own)
            for b, own in zip(summary.columns, found, strict=True)
        )
        lines.append(TableRow(a, "column", tuple(cells)))
    caption = "Probability in % that the row is ahead of the column, overall"
    return Sheet("probabilities", caption, "ahead of", summary.columns, tuple(lines))


def _probability(found: Comparison | None) -> Cell:
    if found is None or math.isnan(found.probability):
        return MISSING
    return Cell(percent(found.probability), "clear" if found.is_clear else "")


def _headroom(summary: Summary) -> Sheet:
    rows = tuple(row.name for row in summary.main_rows)
    lines = []
    for column in summary.trained:
        shares = [summary.headroom.get((row, column)) for row in rows]
        cells = tuple(MISSING if e is None else Cell(_plain(e, digits=0)) for e in shares)
        lines.append(TableRow(column, "column", cells))
    caption = (
        f"Headroom captured in %, with 95 % intervals: (column - {summary.base}) / "
        f"({ORACLE} - {summary.base})"
    )
    return Sheet("headroom", caption, "column", rows, tuple(lines))


def _budgets(summary: Summary) -> Sheet:
    words = {"steps": "branch steps"}
    heads = (*(words.get(name, name.replace("_", " ")) for name in COUNTS), "wall seconds")
    lines = [
        TableRow(column, "column", _numbers([*(own.counts[name] for name in COUNTS), own.seconds]))
        for column, own in summary.budgets.items()
    ]
    caption = "Training budget, shared experts included, as means over seeds"
    return Sheet("budgets", caption, "column", heads, tuple(lines))


def _numbers(values: Sequence[float]) -> tuple[Cell, ...]:
    return tuple(Cell(f"{value:,.0f}") for value in values)


def percent(probability: float) -> str:
    """A share of draws; none of them or all of them is only a bound."""
    if math.isnan(probability):
        return DASH
    if probability > 0.999:
        return ">99.9"
    return "<0.1" if probability < 0.001 else f"{100 * probability:.1f}"


def signed(difference: Estimate) -> str:
    """A difference in points, with its sign."""
    sign = "+" if difference.mean >= 0 else ""
    return f"{sign}{difference}"


def _plain(mean_interval: Estimate, *, digits: int) -> str:
    mean, half = 100 * mean_interval.mean, 50 * (mean_interval.high - mean_interval.low)
    text = f"{mean:.{digits}f}"
    return f"{text} \u00b1{half:.{digits}f}" if math.isfinite(half) else text

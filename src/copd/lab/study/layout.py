"""A summary as text before any markup: tables of cells, and notes on how to read them."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from copd.lab.study.moments import DOMAIN_MEAN, ORACLE
from copd.lab.study.results import OVERALL
from copd.lab.study.statistics import Summary
from copd.monitor.results import Estimate
from copd.run.cost import COUNTS

DASH = "\u2013"
"""An en dash: not evaluated."""

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
    rows: tuple[TableRow, ...]


def sheets(summary: Summary, reference: str | None) -> tuple[Sheet, ...]:
    """Lay out accuracy, differences to a reference, probabilities, headroom and budgets."""
    if reference is not None and reference not in summary.columns:
        raise ValueError(
            f"the reference must be a column of the study: got {reference!r}, expected one of "
            f"{', '.join(summary.columns)}. Name one of them."
        )
    default = "copd" if "copd" in summary.trained else next(reversed(summary.trained), None)
    reference = reference or default
    found = [_accuracy(summary)]
    if reference is not None and len(summary.columns) > 1:
        found += [_differences(summary, reference), _probabilities(summary)]
    if summary.headroom:
        found.append(_headroom(summary))
    return (*found, _budgets(summary))


def percent(probability: float) -> str:
    """Format a share of draws in percent; none or all of them give only a bound."""
    if math.isnan(probability):
        return DASH
    if probability > 0.999:
        return ">99.9"
    return "<0.1" if probability < 0.001 else f"{100 * probability:.1f}"


def signed(difference: Estimate) -> str:
    """Format a difference in points, with its sign."""
    return f"{'+' if difference.mean >= 0 else ''}{difference}"


def _accuracy(summary: Summary) -> Sheet:
    rows = []
    for row in summary.rows:
        own = {column: summary.cells[row.name, column] for column in summary.columns}
        known = {column: cell for column, cell in own.items() if not math.isnan(cell.mean)}
        marks = _marks(summary, row.name, known)
        cells = (Cell(str(known[c]), marks.get(c, "")) if c in known else MISSING for c in own)
        rows.append(TableRow(row.name, row.kind, tuple(cells)))
    caption = f"{summary.title}: accuracy in %, with 95 % intervals"
    return Sheet("accuracy", caption, "suite", summary.columns, tuple(rows))


def _marks(summary: Summary, row: str, cells: dict[str, Estimate]) -> dict[str, Mark]:
    """Mark the best column but the oracle, and those that are not clearly behind it."""
    means = {column: cell.mean for column, cell in cells.items() if column != ORACLE}
    if len(means) < 2:
        return {}
    best = max(means, key=lambda column: means[column])
    compared = {c: summary.comparisons.get((row, best, c)) for c in means if c != best}
    near = [c for c, found in compared.items() if found is None or not found.is_clear]
    return dict.fromkeys([best, *near], "tied") if near else {best: "best"}


def _differences(summary: Summary, reference: str) -> Sheet:
    def cell(row: str, other: str) -> Cell:
        found = summary.comparisons.get((row, reference, other))
        if found is None:
            return MISSING
        text = f"{signed(found.difference)} ({percent(found.probability)})"
        return Cell(text, "clear" if found.is_clear else "")

    heads = tuple(row.name for row in summary.main_rows)
    others = [column for column in summary.columns if column != reference]
    rows = [TableRow(c, "column", tuple(cell(row, c) for row in heads)) for c in others]
    caption = (
        f"{reference} minus each column in points, paired, with 95 % intervals, and the "
        f"probability in % that {reference} is ahead"
    )
    return Sheet("differences", caption, f"{reference} minus", heads, tuple(rows))


def _probabilities(summary: Summary) -> Sheet:
    def cell(a: str, b: str) -> Cell:
        found = summary.comparisons.get((OVERALL, a, b))
        if a == b:
            return Cell("")
        if found is None or math.isnan(found.probability):
            return MISSING
        return Cell(percent(found.probability), "clear" if found.is_clear else "")

    columns = summary.columns
    rows = [TableRow(a, "column", tuple(cell(a, b) for b in columns)) for a in columns]
    caption = "Probability in % that the row is ahead of the column, overall"
    return Sheet("probabilities", caption, "ahead of", columns, tuple(rows))


def _headroom(summary: Summary) -> Sheet:
    def cell(row: str, column: str) -> Cell:
        share = summary.headroom.get((row, column))
        if share is None:
            return MISSING
        text, half = f"{100 * share.mean:.0f}", 50 * (share.high - share.low)
        return Cell(f"{text} \u00b1{half:.0f}" if math.isfinite(half) else text)

    heads = tuple(row.name for row in summary.main_rows)
    rows = [TableRow(c, "column", tuple(cell(row, c) for row in heads)) for c in summary.trained]
    caption = (
        f"Headroom captured in %, with 95 % intervals: (column - {summary.base}) / "
        f"({ORACLE} - {summary.base})"
    )
    return Sheet("headroom", caption, "column", heads, tuple(rows))


def _budgets(summary: Summary) -> Sheet:
    heads = ["branch steps" if name == "steps" else name.replace("_", " ") for name in COUNTS]
    rows = []
    for column, own in summary.budgets.items():
        values = [*(own.counts[name] for name in COUNTS), own.seconds]
        rows.append(TableRow(column, "column", tuple(Cell(f"{v:,.0f}") for v in values)))
    caption = "Training budget, shared experts included, as means over seeds"
    return Sheet("budgets", caption, "column", (*heads, "wall seconds"), tuple(rows))


_EQUAL = {"branch_steps": "branch steps", "tokens": "tokens"}


def notes(summary: Summary) -> tuple[str, ...]:
    """Return notes of a sentence or two: how to read the tables, then every gap."""
    return (*_reading(summary), *_seeds(summary), *_gaps(summary), *_headroom_notes(summary))


def _reading(summary: Summary) -> list[str]:
    names = _listed(summary.own_budget)
    own = f"; on budgets of their own: {names}" if names else ""
    lines = [
        f"Methods have the same number of {_EQUAL.get(summary.equal, summary.equal)}{own}.",
        "Intervals are 95 %, over seeds and problems, by a paired bootstrap: the same resampled "
        "problems for all columns and the same weights of seeds.",
        "A domain is the mean over its suites; overall is the mean over all suites.",
        "Bold: ahead of every other column by a paired difference whose interval excludes zero. "
        "Italic: the best and those that are not clearly behind it. The routed oracle does not "
        "compete, and intervals are not adjusted for the number of comparisons.",
        "A probability is the share of bootstrap draws in which a column is ahead, ties half: "
        "what these seeds and problems say of others like them, not a p-value.",
    ]
    if any(row.name == DOMAIN_MEAN for row in summary.rows):
        lines.append(f"The {DOMAIN_MEAN} weighs domains the same, however many suites they have.")
    if ORACLE in summary.columns:
        lines.append("The routed oracle sends each domain to its expert of the same seed.")
    return lines


def _seeds(summary: Summary) -> list[str]:
    seeded = dict(summary.seeds)
    lines = []
    if summary.base is not None and len(seeded[summary.base]) == 1:
        del seeded[summary.base]
        lines.append(f"{summary.base} was measured once: its intervals are over problems only.")
    every = sorted(set(itertools.chain(*seeded.values())))
    for column, seeds in seeded.items():
        if len(seeds) < len(every):
            lines.append(
                f"{column} has seeds {_listed(sorted(seeds))} of {_listed(every)}: "
                "it is compared on the seeds that both columns have."
            )
        if len(seeds) == 1:
            lines.append(
                f"{column} has one seed: its intervals are over problems only and say nothing "
                "of other seeds."
            )
    return lines


def _gaps(summary: Summary) -> list[str]:
    lines = [f"Not finished yet: {'; '.join(summary.missing)}."] if summary.missing else []
    domains = [row.name for row in summary.rows if row.kind == "domain"]
    for column in summary.columns:
        empty = [name for name in domains if math.isnan(summary.cells[name, column].mean)]
        if empty:
            lines.append(f"{column} was not measured on {_listed(empty)} with every seed.")
    compared = {(a, b) for _, a, b in summary.comparisons}
    pairs = itertools.combinations(summary.columns, 2)
    if apart := [f"{a} and {b}" for a, b in pairs if (a, b) not in compared]:
        lines.append(f"No seed or no problem in common, so not compared: {'; '.join(apart)}.")
    return lines


def _headroom_notes(summary: Summary) -> list[str]:
    lines = []
    shown = {row for row, column in summary.headroom if column in summary.trained}
    small = [row.name for row in summary.main_rows if row.name not in shown]
    if summary.base is None:
        lines.append("There is no base: no headroom is shown.")
    elif ORACLE not in summary.columns:
        lines.append("No seed has the experts of all domains: no headroom is shown.")
    elif small:
        lines.append(
            f"The routed oracle is not ahead of {summary.base} by an interval that excludes zero "
            f"on {_listed(small)}: no headroom is shown there."
        )
    suites = [row for row in summary.rows if row.kind == "suite"]
    if single := [row.name for row in suites if row.num_problems == 1]:
        lines.append(f"One problem only, so no interval: {_listed(single)} and what has them.")
    return lines


def _listed(names: Iterable[str | int]) -> str:
    return ", ".join(map(str, names))

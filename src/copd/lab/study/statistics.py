"""The statistics of a study: accuracies, paired differences, captured headroom, budgets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from copd.lab.study.bootstrap import Draws, draw, mean_intervals, probabilities
from copd.lab.study.moments import ORACLE, Contrast, Moments, SummaryRow, contrast, moments_of
from copd.lab.study.results import StudyResults
from copd.monitor.results import Estimate
from copd.run.cost import COUNTS


@dataclass(frozen=True)
class Comparison:
    """Column A minus column B on the problems and seeds that both have."""

    difference: Estimate
    probability: float
    """That A is ahead: the share of bootstrap draws in which it is, ties counting half."""
    seeds: tuple[int, ...]

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference excludes zero."""
        return self.difference.low > 0 or self.difference.high < 0

    def reversed(self) -> Comparison:
        """Return B minus A."""
        d = self.difference
        return Comparison(Estimate(-d.mean, -d.high, -d.low), 1 - self.probability, self.seeds)


@dataclass(frozen=True)
class Budget:
    """The cost of a column, as means over its seeds."""

    counts: Mapping[str, float]
    """One for each of `copd.run.cost.COUNTS`; a step is a branch step."""
    seconds: float


@dataclass(frozen=True, eq=False)
class Summary:
    """All numbers of a study's tables."""

    title: str
    equal: str
    own_budget: tuple[str, ...]
    """Columns that are not at the equal budget, such as a single expert."""
    columns: tuple[str, ...]
    """In the order of the results, the routed oracle last where there is one."""
    rows: tuple[SummaryRow, ...]
    base: str | None
    """The column of the model that all methods start from."""
    cells: Mapping[tuple[str, str], Estimate]
    """By row and column; not a number where it was not evaluated."""
    comparisons: Mapping[tuple[str, str, str], Comparison]
    """By row, A and B, in both orders; absent where they have nothing in common."""
    headroom: Mapping[tuple[str, str], Estimate]
    """By row and column, for domains and overall: (column - base) / (routed oracle - base).

    Absent where the oracle is not ahead of the base by an interval that excludes zero.
    """
    budgets: Mapping[str, Budget]
    seeds: Mapping[str, tuple[int, ...]]
    """The seeds of each column."""
    missing: tuple[str, ...]
    """Jobs that are not finished yet."""

    @property
    def trained(self) -> tuple[str, ...]:
        """The columns of one trained model each."""
        return tuple(c for c in self.columns if c not in (self.base, ORACLE))

    @property
    def main_rows(self) -> tuple[SummaryRow, ...]:
        """Domains and overall."""
        return tuple(row for row in self.rows if row.kind != "suite")


def summarize(results: StudyResults, *, seed: int = 0, resamples: int = 2000) -> Summary:
    """Compute every number of a study's tables.

    Args:
        results: The outcomes of the study.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap draws.

    Returns:
        Accuracies, comparisons and headroom with 95 % intervals, and budgets.
    """
    moments = moments_of(results)
    draws = draw(results, seed=seed, resamples=resamples)
    base = next((o.column for o in results.outcomes if o.method == "base"), None)
    return Summary(
        title=results.title,
        equal=results.equal,
        own_budget=tuple(results.settings.get("own_budget", ())),
        columns=tuple(moments.units),
        rows=moments.rows,
        base=base,
        cells=_cells(moments, draws),
        comparisons=_comparisons(moments, draws),
        headroom=_headroom(moments, draws, base) if base else {},
        budgets={column: _budget(results, column) for column in results.columns},
        seeds={column: tuple(own) for column, own in moments.units.items()},
        missing=results.missing,
    )


def _cells(moments: Moments, draws: Draws) -> dict[tuple[str, str], Estimate]:
    cells = {}
    for column in moments.units:
        own = contrast(moments, {column: 1.0})
        assert own is not None, "a column has seeds in common with itself"
        for row, interval in zip(moments.rows, mean_intervals(own, moments, draws), strict=True):
            cells[row.name, column] = interval
    return cells


def _comparisons(moments: Moments, draws: Draws) -> dict[tuple[str, str, str], Comparison]:
    found = {}
    for a, b in itertools.combinations(moments.units, 2):
        difference = contrast(moments, {a: 1.0, b: -1.0})
        if difference is None:
            continue
        intervals = mean_intervals(difference, moments, draws)
        shares = probabilities(difference, moments, draws)
        for row, interval, share in zip(moments.rows, intervals, shares, strict=True):
            if not math.isnan(interval.mean):
                compared = Comparison(interval, share, difference.seeds)
                found[row.name, a, b] = compared
                found[row.name, b, a] = compared.reversed()
    return found


def _headroom(moments: Moments, draws: Draws, base: str) -> dict[tuple[str, str], Estimate]:
    found = {}
    for column in moments.units:
        if column in (base, ORACLE) or ORACLE not in moments.units:
            continue
        gap = contrast(moments, {column: 1.0, base: -1.0, ORACLE: 0.0})
        room = contrast(moments, {column: 0.0, base: -1.0, ORACLE: 1.0})
        if gap is None or room is None:
            continue
        rooms = mean_intervals(room, moments, draws)
        for index, row in enumerate(moments.rows):
            if row.kind != "suite" and gap.measured[index] and rooms[index].low > 0:
                share = gap.values.mean(axis=0)[index] / rooms[index].mean
                error = _ratio_error(moments, column, base, share, rooms[index].mean)
                half = mean_intervals(error, moments, draws)[index].high
                found[row.name, column] = Estimate(share, share - half, share + half)
    return found


def _ratio_error(moments: Moments, column: str, base: str, share: float, room: float) -> Contrast:
    """Return the first-order error of the ratio h of (c - b) to r = (o - b).

    It is (c - b - h (o - b)) / r: the delta method, sound and used only where r is clearly above
    zero.
    """
    coefficients = {column: 1 / room, base: (share - 1) / room, ORACLE: -share / room}
    error = contrast(moments, coefficients)
    assert error is not None, "the ratio has common seeds, so its error has"
    return error


def _budget(results: StudyResults, column: str) -> Budget:
    own = [o for o in results.outcomes if o.column == column]
    counts = {name: float(np.mean([o.cost[name] for o in own])) for name in COUNTS}
    return Budget(counts, float(np.mean([o.seconds for o in own])))

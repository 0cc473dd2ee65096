"""The statistics of a study: accuracies, paired differences, captured headroom, budgets.

Intervals come from a paired bootstrap over seeds and problems. A draw resamples problems within
each suite, the same ones for all columns, and weights seeds, with the same weights for all
columns that share them; so what columns have in common cancels in their differences. Three
corrections make 95 % mean 95 % with few seeds, where plain resampling covers less:

- A resample of n values varies by (n - 1)/n too little. Deviations are scaled to the unbiased
  variance: that of seeds over S, that of problems in a suite over P.
- Five seeds resample to 126 sets, and their spread is itself uncertain. Seeds get Gaussian instead
  of multinomial weights (the multiplier bootstrap: Wu 1986), divided in each draw by one chi draw
  with S - 1 degrees of freedom, so that the seeds' part of every contrast is exactly Student's t,
  as it is for normal seed effects.
- The interaction of a seed and a problem is in both parts, so their sum counts it twice (Owen
  2007, the pigeonhole bootstrap). The draws of a contrast are scaled to the variance of the
  two-way model, `Contrast.variance`.

Intervals are symmetric, the mean and the 95 % quantile of the draws' distance from it (Hall 1988).
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from copd.lab.study.moments import (
    ORACLE,
    Contrast,
    Floats,
    Moments,
    SummaryRow,
    contrast,
    moments_of,
    suite_values,
)
from copd.lab.study.results import StudyResults
from copd.monitor.results import Estimate
from copd.run.cost import COUNTS

LEVEL = 0.95
CHUNK = 2**22
"""Problems drawn at a time; bounds the memory."""

TIE = 1e-12
"""Differences below it are rounding."""


@dataclass(frozen=True, eq=False)
class Draws:
    """The random numbers that all contrasts share, for N resamples."""

    problems: Floats
    """N K U: deviations of suite means under resampled problems."""
    seeds: Floats
    """N S: a weight for each seed of the study."""
    seed_index: dict[int, int]
    """Seed to its index in `seeds`."""
    chi: Floats
    """N S: the root of chi-squared over its degrees of freedom, at index d - 1 for d of them."""


def draw(results: StudyResults, *, seed: int, resamples: int) -> Draws:
    """Resample problems and draw seed weights, for `moments_of` the same results."""
    rng = np.random.default_rng(seed)
    problems = [resampled_means(values, resamples, rng) for values in suite_values(results)]
    seeds = sorted({outcome.seed for outcome in results.outcomes})
    normal = rng.standard_normal((resamples, len(seeds)))
    degrees = np.arange(1, len(seeds) + 1)
    return Draws(
        problems=np.stack(problems, axis=1),
        seeds=rng.standard_normal((resamples, len(seeds))),
        seed_index={seed: index for index, seed in enumerate(seeds)},
        chi=np.sqrt(np.cumsum(normal**2, axis=1) / degrees),
    )


def resampled_means(values: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Return `N U` deviations of the means of `P U` values under problems with replacement."""
    size = len(values)
    centred = np.nan_to_num(values - values.mean(axis=0))
    out = np.empty((resamples, values.shape[1]))
    step = max(1, CHUNK // size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
        out[start : start + rows] = counts @ centred / size
    return out * np.sqrt(size / max(size - 1, 1))


def deviations(contrast: Contrast, moments: Moments, draws: Draws) -> Floats:
    """Return `N R` distances of the contrast from its mean in each draw."""
    num_seeds, weights = len(contrast.seeds), moments.weights
    of_problems = draws.problems @ contrast.coefficients.mean(axis=0) @ weights.T
    of_seeds = np.zeros_like(of_problems)
    if num_seeds > 1:
        own = draws.seeds[:, [draws.seed_index[seed] for seed in contrast.seeds]]
        centred = contrast.values - contrast.values.mean(axis=0)
        spread = own @ centred / np.sqrt(num_seeds * (num_seeds - 1))
        of_seeds = spread / draws.chi[:, [num_seeds - 2]]
    total = contrast.between_seeds + contrast.between_problems
    scale = np.sqrt(contrast.variance / np.where(total > 0, total, 1.0))
    return np.where(total == 0, 0.0, scale) * (of_seeds + of_problems)


def mean_intervals(contrast: Contrast, moments: Moments, draws: Draws) -> list[Estimate]:
    """Return mean and 95 % interval of each row; not a number where it was not evaluated."""
    means = np.where(contrast.measured, contrast.values.mean(axis=0), np.nan)
    halves = np.quantile(np.abs(deviations(contrast, moments, draws)), LEVEL, axis=0)
    return [
        Estimate(float(mean), float(mean - half), float(mean + half))
        for mean, half in zip(means, halves, strict=True)
    ]


def probabilities(contrast: Contrast, moments: Moments, draws: Draws) -> list[float]:
    """Return the share of draws with the contrast above zero, ties counting half, per row."""
    drawn = contrast.values.mean(axis=0) + deviations(contrast, moments, draws)
    above = np.mean(drawn > TIE, axis=0) + np.mean(np.abs(drawn) <= TIE, axis=0) / 2
    known = contrast.measured & ~np.isnan(drawn).any(axis=0)
    return [float(share) for share in np.where(known, above, np.nan)]


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

    def reversed(self) -> "Comparison":
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

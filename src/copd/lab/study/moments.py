"""Means and covariances of a study's columns per suite, and the variance of their contrasts.

Letters: K suites, U units (a column of one seed), S seeds, R rows of a table, P problems of a
suite.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from copd.lab.study.results import OVERALL, Outcome, StudyResults

Floats = NDArray[np.float64]

ORACLE = "routed oracle"
"""The column that sends each domain to its expert; computed, not trained."""

DOMAIN_MEAN = "mean of domains"


@dataclass(frozen=True, eq=False)
class SummaryRow:
    """A row of the tables: a weighted mean over suites."""

    name: str
    kind: Literal["suite", "domain", "overall"]
    weights: Floats
    """K weights; they sum to one."""
    num_problems: int


@dataclass(frozen=True, eq=False)
class Moments:
    """All that the statistics need to know of single problems."""

    rows: tuple[SummaryRow, ...]
    units: Mapping[str, Mapping[int, int]]
    """Column to seed to the index of its unit."""
    seedless: frozenset[str]
    """Columns without a seed of their own: the base, if it was evaluated once."""
    measured: NDArray[np.bool_]
    """K U."""
    means: Floats
    """K U."""
    covariances: Floats
    """K U U, of suite means over draws of problems: those of single problems over P."""
    single: NDArray[np.bool_]
    """K: suites of one problem, whose spread is unknown."""

    @property
    def weights(self) -> Floats:
        """R K."""
        return np.array([row.weights for row in self.rows])

    def common_seeds(self, columns: Sequence[str]) -> tuple[int, ...]:
        """Return the seeds that all these columns have; one seed if none of them has its own."""
        seeded = [self.units[c] for c in columns if c not in self.seedless]
        if not seeded:
            return tuple(self.units[columns[0]])
        return tuple(seed for seed in seeded[0] if all(seed in own for own in seeded))

    def unit(self, column: str, seed: int) -> int:
        """Return the index of a column's values for a seed."""
        own = self.units[column]
        return next(iter(own.values())) if column in self.seedless else own[seed]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A weighted sum of columns in every row, such as a difference of two, on common seeds."""

    seeds: tuple[int, ...]
    coefficients: Floats
    """S U."""
    values: Floats
    """S R: the contrast of each seed."""
    measured: NDArray[np.bool_]
    """R: whether all columns were evaluated on all suites of the row."""
    between_seeds: Floats
    """R: A, the variance of the seeds' values over S; includes the residual."""
    between_problems: Floats
    """R: B, the variance of the mean over draws of problems; includes the residual.

    Not a number where a suite has one problem only.
    """
    residual: Floats
    """R: E, in both A and B: the interaction of problems and seeds."""

    @property
    def variance(self) -> Floats:
        """Variance of the mean over seeds and problems: A + B - E, but at least A and at least B.

        With `y[s, p] = mu + a[s] + b[p] + e[s, p]` drawn at random, the mean has variance
        `sa2/S + sb2/P + se2/(S P)`, while A expects `sa2/S + se2/(S P)`, B expects
        `sb2/P + se2/(S P)` and E expects `se2/(S P)` (two-way random effects, e.g. Searle,
        Casella & McCulloch, Variance Components, 1992, chapter 4; strata add with their squared
        weights). A or B alone are unbiased lower bounds.
        """
        a, b = self.between_seeds, self.between_problems
        return np.maximum(np.maximum(a, b), a + b - self.residual)


def contrast(moments: Moments, coefficients: Mapping[str, float]) -> Contrast | None:
    """Return the sum of columns times coefficients on their common seeds; None without any."""
    seeds = moments.common_seeds(tuple(coefficients))
    if not seeds:
        return None
    num_seeds, weights = len(seeds), moments.weights
    units = np.zeros((num_seeds, moments.means.shape[1]))  # S U
    for index, seed in enumerate(seeds):
        for column, factor in coefficients.items():
            units[index, moments.unit(column, seed)] += factor
    values = units @ moments.means.T @ weights.T
    mean = units.mean(axis=0)
    of_mean = mean @ moments.covariances @ mean  # K
    of_seeds = ((units @ moments.covariances) * units).sum(axis=(1, 2))
    a = values.var(axis=0, ddof=1) / num_seeds if num_seeds > 1 else np.zeros(len(weights))
    e = (of_seeds - num_seeds * of_mean) / (num_seeds * max(num_seeds - 1, 1))
    b = np.where(weights @ moments.single > 0, np.nan, weights**2 @ of_mean)
    unmeasured = (~moments.measured[:, units.any(axis=0)]).any(axis=1)  # K
    return Contrast(
        seeds=seeds,
        coefficients=units,
        values=values,
        measured=~(weights @ unmeasured > 0),
        between_seeds=a,
        between_problems=np.maximum(b, 0.0),
        residual=np.maximum(weights**2 @ e, 0.0),
    )


def moments_of(results: StudyResults) -> Moments:
    """Compute means and covariances of all columns, including the routed oracle."""
    outcomes = _with_oracle(results)
    units: dict[str, dict[int, int]] = {}
    for index, outcome in enumerate(outcomes):
        units.setdefault(outcome.column, {})[outcome.seed] = index
    bases = {outcome.column for outcome in outcomes if outcome.method == "base"}
    means, covariances, measured, single = [], [], [], []
    for values in suite_values(results):
        missing = np.isnan(values).any(axis=0)
        values = np.where(missing, 0.0, values)
        size = len(values)
        centred = values - values.mean(axis=0)
        means.append(values.mean(axis=0))
        covariances.append(centred.T @ centred / (max(size - 1, 1) * size))
        measured.append(~missing)
        single.append(size == 1)
    return Moments(
        rows=_rows(results),
        units=units,
        seedless=frozenset(column for column in bases if len(units[column]) == 1),
        measured=np.array(measured),
        means=np.array(means),
        covariances=np.array(covariances),
        single=np.array(single),
    )


def suite_values(results: StudyResults) -> Iterator[Floats]:
    """Yield the `P U` accuracies of each suite; not a number where a unit was not evaluated."""
    outcomes = _with_oracle(results)
    for domain, suites in results.problems.items():
        unmeasured = np.full(len(suites), np.nan)
        columns = [
            np.array(o.domains[domain].accuracy) if domain in o.domains else unmeasured
            for o in outcomes
        ]
        names = np.array(suites)
        for suite in dict.fromkeys(suites):
            yield np.stack([column[names == suite] for column in columns], axis=1)


def _with_oracle(results: StudyResults) -> tuple[Outcome, ...]:
    """Return the outcomes, and for seeds with all experts one of each domain's expert."""
    by_unit = {(o.column, o.seed): o for o in results.outcomes}
    oracles = []
    for seed in dict.fromkeys(o.seed for o in results.outcomes):
        experts = {d: by_unit.get((column, seed)) for d, column in results.experts.items()}
        routed = {d: o.domains[d] for d, o in experts.items() if o and d in o.domains}
        if routed and set(routed) == set(results.problems):
            oracles.append(Outcome(ORACLE, ORACLE, seed, routed, {}, 0.0))
    return (*results.outcomes, *oracles)


def _rows(results: StudyResults) -> tuple[SummaryRow, ...]:
    """Return each domain's suites and its mean over them, then the mean over all suites.

    As in the paper, averages are over benchmarks, however many problems each has. The mean of the
    domains' means is added where it is a different one.
    """
    suites = [(d, s) for d, own in results.problems.items() for s in dict.fromkeys(own)]
    domains = {d: np.array([d == own for own, _ in suites], float) for d in results.problems}
    rows = []
    for domain, flags in domains.items():
        own = results.problems[domain]
        for index in np.flatnonzero(flags):
            suite, weights = suites[index][1], np.eye(len(suites))[index]
            rows.append(SummaryRow(f"{domain}/{suite}", "suite", weights, own.count(suite)))
        rows.append(SummaryRow(domain, "domain", flags / flags.sum(), len(own)))
    total = sum(map(len, results.problems.values()))
    rows.append(SummaryRow(OVERALL, "overall", np.full(len(suites), 1 / len(suites)), total))
    if len({flags.sum() for flags in domains.values()}) > 1:
        of_domains = np.mean([flags / flags.sum() for flags in domains.values()], axis=0)
        rows.append(SummaryRow(DOMAIN_MEAN, "overall", of_domains, total))
    return tuple(rows)

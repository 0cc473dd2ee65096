"""The paired bootstrap over seeds and problems: draws of any contrast, and its interval.

A draw resamples problems within each suite, the same ones for all columns, and weights seeds, with
the same weights for all columns that share them; so what columns have in common cancels in their
differences. Three corrections make 95 % mean 95 % with few seeds, where plain resampling covers
less:

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

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from copd.lab.study.moments import Contrast, Floats, Moments, suite_values
from copd.lab.study.results import StudyResults
from copd.monitor.results import Estimate

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

"""What difference a study can see, from the variances it has observed.

Knows no draws and no tables.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from copd.lab.study.moments import contrast, moments_of
from copd.lab.study.results import StudyResults
from copd.monitor.results import DomainResult

SIDED = 0.05
POWER = 0.80
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class Variances:
    """What makes a paired difference of two columns vary, in one row of the tables."""

    seeds: float
    """Of one seed's true difference; from few seeds a rough guess."""

    problems: float
    """Of the mean over the study's problems, as problems differ for good."""

    residual: float
    """The same as they differ for one seed: also the noise of sampling completions."""

    def error(self, num_seeds: int, problems: float = 1.0) -> float:
        """The standard error of the difference with so many seeds and times the problems."""
        return math.sqrt(
            self.seeds / num_seeds + (self.problems + self.residual / num_seeds) / problems
        )


def paired_variances(results: StudyResults, a: str, b: str) -> dict[str, Variances]:
    """The parts of the variance of A - B by row; needs two seeds in common."""
    moments = moments_of(results)
    found = contrast(moments, {a: 1.0, b: -1.0})
    num_seeds = len(found.seeds) if found else 0
    if found is None or num_seeds < 2:
        raise ValueError(
            f"the variance between seeds of {a} - {b} needs two seeds that both have: got "
            f"{num_seeds}. Run more seeds."
        )
    between, problems, both = found.between_seeds, found.between_problems, found.residual
    return {
        row.name: Variances(
            seeds=float(num_seeds * np.maximum(between - both, 0.0)[place]),
            problems=float(np.maximum(problems - both, 0.0)[place]),
            residual=float(num_seeds * both[place]),
        )
        for place, row in enumerate(moments.rows)
        if found.measured[place]
    }


def minimal_difference(variances: Variances, *, num_seeds: int, problems: float = 1.0) -> float:
    """The true difference that a two-sided 5 % test finds in 80 of 100 studies.

    `(t[0.975, v] + t[0.8, v]) * error`, v the degrees of freedom of Satterthwaite (1946): the
    seeds' part has S - 1, the others many. A study has `num_seeds` seeds and `problems` times the
    problems of the one that was observed.
    """
    error = variances.error(num_seeds, problems)
    if error == 0:
        return 0.0
    of_seeds = variances.seeds / num_seeds
    if num_seeds < 2 or of_seeds == 0:
        degrees = math.inf
    else:
        degrees = error**4 / of_seeds**2 * (num_seeds - 1)
    return error * (quantile(1 - SIDED / 2, degrees) + quantile(POWER, degrees))


def accuracy_error(result: DomainResult) -> float:
    """The standard error of one model's accuracy on a domain, over draws of problems.

    The domain is the mean over its K suites: `sqrt(sum_k s_k^2 / P_k) / K`.
    """
    suites = tuple(dict.fromkeys(result.suites))
    spreads = [np.array(result.of_suite(suite)) for suite in suites]
    if any(len(values) < 2 for values in spreads):
        raise ValueError(
            "the error of an accuracy needs two problems in every suite: got one with fewer. "
            "Raise evaluation.num_problems."
        )
    return math.sqrt(sum(values.var(ddof=1) / len(values) for values in spreads)) / len(suites)


def quantile(probability: float, degrees: float) -> float:
    """Of Student's t, by bisection of `distribution`; probabilities from 0.5 up."""
    low, high = 0.0, 1.0
    while distribution(high, degrees) < probability:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if distribution(middle, degrees) < probability else (low, middle)
    return (low + high) / 2


def distribution(t: float, degrees: float) -> float:
    """The share of Student's t below a t of at least zero.

    With t = sqrt(v) tan(x) the density is a power of a cosine (Abramowitz & Stegun 26.7):
    `1/2 + gamma((v+1)/2) / (sqrt(pi) gamma(v/2)) * integral_0^x cos(u)^(v-1) du`.
    Above a million degrees it is the normal distribution.
    """
    if degrees > 1e6:
        return 0.5 * (1 + math.erf(t / math.sqrt(2)))
    upper = math.atan(t / math.sqrt(degrees))
    points = upper * (_NODES + 1) / 2
    integral = float(_WEIGHTS @ np.cos(points) ** (degrees - 1)) * upper / 2
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    return 0.5 + scale / math.sqrt(math.pi) * integral

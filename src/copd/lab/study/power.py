"""The smallest difference that a study can detect, from the variances it has observed."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from copd.lab.study.moments import contrast, moments_of
from copd.lab.study.results import StudyResults
from copd.monitor.results import DomainResult

SIDED = 0.05
POWER = 0.80


@dataclass(frozen=True)
class Variances:
    """The variance components of a paired difference of two columns, in one row of the tables."""

    seeds: float
    """Of one seed's true difference; from few seeds a rough estimate."""
    problems: float
    """Of the mean over the study's problems, the part that all seeds share."""
    residual: float
    """The same for the part of each seed alone, which includes the noise of sampling."""

    def error(self, num_seeds: int, problems: float = 1.0) -> float:
        """Return the standard error with so many seeds and `problems` times the problems."""
        return math.sqrt(
            self.seeds / num_seeds + (self.problems + self.residual / num_seeds) / problems
        )


def paired_variances(results: StudyResults, a: str, b: str) -> dict[str, Variances]:
    """Return the variance components of A - B by row; needs two seeds in common."""
    moments = moments_of(results)
    found = contrast(moments, {a: 1.0, b: -1.0})
    num_seeds = len(found.seeds) if found else 0
    if found is None or num_seeds < 2:
        raise ValueError(
            f"the variance between seeds of {a} - {b} needs two seeds that both have: got "
            f"{num_seeds}. Run more seeds."
        )
    residual = found.residual
    seeds = num_seeds * np.maximum(found.between_seeds - residual, 0.0)
    problems = np.maximum(found.between_problems - residual, 0.0)
    return {
        row.name: Variances(float(seeds[i]), float(problems[i]), float(num_seeds * residual[i]))
        for i, row in enumerate(moments.rows)
        if found.measured[i]
    }


def minimal_difference(variances: Variances, *, num_seeds: int, problems: float = 1.0) -> float:
    """Return the true difference that a two-sided 5 % test finds in 80 of 100 studies.

    `(t[0.975, v] + t[0.8, v]) * error`, v the degrees of freedom of Satterthwaite (1946): the
    seeds' part has S - 1, the others many. A study has `num_seeds` seeds and `problems` times the
    problems of the observed one.
    """
    error = variances.error(num_seeds, problems)
    of_seeds = variances.seeds / num_seeds
    if error == 0:
        return 0.0
    is_known = num_seeds < 2 or of_seeds == 0
    degrees = math.inf if is_known else error**4 / of_seeds**2 * (num_seeds - 1)
    return error * float(student_t.ppf(1 - SIDED / 2, degrees) + student_t.ppf(POWER, degrees))


def accuracy_error(result: DomainResult) -> float:
    """Return the standard error of one model's accuracy on a domain, over draws of problems.

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

"""Whether the promised power is there, and what it depends on."""

import math

import numpy as np
import pytest

from copd.lab.study.power import (
    Variances,
    accuracy_error,
    minimal_difference,
    paired_variances,
)
from copd.monitor.results import DomainResult


def test_the_smallest_difference_is_found_in_80_of_100_studies():
    """Five normal seeds and nothing else: the paired t test."""
    true = minimal_difference(Variances(1.0, 0.0, 0.0), num_seeds=5)
    drawn = np.random.default_rng(0).normal(true, 1.0, size=(20_000, 5))
    t = drawn.mean(axis=1) / (drawn.std(axis=1, ddof=1) / math.sqrt(5))
    assert np.mean(np.abs(t) > 2.776445) == pytest.approx(0.80, abs=0.03)


def test_more_problems_and_seeds_help_where_they_matter():
    problems, seeds = Variances(0.0, 4.0, 0.0), Variances(4.0, 0.0, 0.0)
    assert minimal_difference(problems, num_seeds=5) == pytest.approx(2.801585 * 2)
    assert minimal_difference(problems, num_seeds=5, problems=4) == pytest.approx(2.801585)
    assert minimal_difference(seeds, num_seeds=5, problems=4) == minimal_difference(
        seeds, num_seeds=5
    )
    assert minimal_difference(seeds, num_seeds=10) < minimal_difference(seeds, num_seeds=5)
    assert minimal_difference(Variances(0.0, 0.0, 0.0), num_seeds=5) == 0
    assert Variances(4.0, 1.0, 2.0).error(2, 4) == math.sqrt(2 + (1 + 1) / 4)


def test_variances_are_recovered_from_a_study(make_study):
    rng = np.random.default_rng(0)
    seeds, problems = 0.2 * rng.normal(size=(60, 1)), 0.5 * rng.normal(size=(1, 400))
    a = seeds + problems + 0.3 * rng.normal(size=(60, 400))
    study = make_study({"a": {"d": a}, "b": {"d": np.zeros((60, 400))}})
    found = paired_variances(study, "a", "b")["d"]
    assert found.seeds == pytest.approx(0.2**2, rel=0.4)
    assert found.problems == pytest.approx(0.5**2 / 400, rel=0.2)
    assert found.residual == pytest.approx(0.3**2 / 400, rel=0.05)
    assert found.error(60) == pytest.approx(
        math.sqrt(0.2**2 / 60 + 0.25 / 400 + 0.09 / 24_000), rel=0.2
    )


def test_one_seed_says_nothing_of_others(make_study):
    study = make_study({"a": {"d": [[0, 1]]}, "b": {"d": [[0, 1]]}})
    with pytest.raises(ValueError, match="Run more seeds"):
        paired_variances(study, "a", "b")


def test_the_error_of_a_domain_at_even_odds_needs_15625_problems():
    """0.4 points are 0.5 / sqrt(15,625); suites share the problems evenly."""
    size = 15_624
    coin = tuple(float(i // 3 % 2) for i in range(size))
    suites = tuple(f"s{i % 3}" for i in range(size))
    assert accuracy_error(DomainResult(suites, coin, coin, 3.0)) == pytest.approx(0.004, rel=1e-3)
    with pytest.raises(ValueError, match=r"Raise evaluation\.num_problems"):
        accuracy_error(DomainResult(("a",), (1.0,), (1.0,), 3.0))

"""Statistics of held-out accuracies, against values by hand and simulation."""

import itertools
import math

import numpy as np
import pytest
from rich.console import Console

from copd.engine import create_engine
from copd.monitor.results import (
    DomainResult,
    from_json,
    gain,
    gain_lines,
    mean_interval,
    overall,
    pass_at_k,
    results_table,
    to_json,
)
from copd.run.evaluation import domain_result, evaluate_branches
from copd.types import EvaluationRollouts


def result(accuracy, suites=None):
    return DomainResult(
        suites=tuple(suites or ["chain"] * len(accuracy)),
        accuracy=tuple(accuracy),
        solved=tuple(float(a > 0) for a in accuracy),
        length=3.0,
    )


def test_pass_at_k_is_the_chance_that_a_drawn_subset_has_a_correct_sample():
    correct = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    for k in range(1, 5):
        for row, value in zip(correct, pass_at_k(correct, k), strict=True):
            drawn = [any(subset) for subset in itertools.combinations(row, k)]
            assert value == pytest.approx(np.mean(drawn))
    with pytest.raises(ValueError, match="Sample more or lower k"):
        pass_at_k(correct, 5)


def test_the_interval_is_over_problems_not_over_samples():
    one = mean_interval([0.0, 1.0, 1.0, 0.0])
    half = 1.96 * math.sqrt((1 / 3) / 4)
    assert (one.mean, one.low, one.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-4)


def test_one_problem_has_no_interval():
    assert str(mean_interval([0.5])) == "50.0"
    assert str(mean_interval([0.0, 1.0])).startswith("50.0 \u00b1")


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    draws = rng.random((2000, 100)) < 0.6
    inside = [e.low <= 0.6 <= e.high for e in map(mean_interval, draws.astype(float))]
    assert 0.93 < np.mean(inside) < 0.97


def test_the_overall_mean_weighs_domains_the_same():
    results = {"text": result([1.0] * 9), "image": result([0.0] * 3)}
    assert overall(results).mean == 0.5


def test_gains_are_paired():
    """Both models vary a lot over problems, together: the difference is sure."""
    base = {"text": result([0.0, 0.5, 0.25, 0.75])}
    model = {"text": result([0.25, 0.75, 0.5, 1.0])}
    difference = gain(model, base)
    assert (difference["text"].low, difference["text"].high) == (0.25, 0.25)
    assert difference["mean"] == difference["text"]


def test_rewards_become_accuracies():
    rewards = np.array([[1.0, 0.5], [0.0, 0.0]], dtype=np.float32)
    rollouts = EvaluationRollouts(("a", "b"), rewards, np.array([[2, 4], [6, 8]], dtype=np.int32))
    assert domain_result(rollouts) == DomainResult(("a", "b"), (0.5, 0.0), (1.0, 0.0), 5.0)


def test_results_survive_json():
    results = {"base": {"text": result([0.5, 1.0])}, "text": {"text": result([1.0, 1.0])}}
    assert from_json(to_json(results)) == results


def test_the_table_shows_suites_domains_and_mean(capsys):
    results = {
        "base": {"text": result([0.0, 1.0, 0.0, 1.0], ["chain", "story"] * 2)},
        "final": {"text": result([1.0, 1.0, 1.0, 1.0], ["chain", "story"] * 2)},
    }
    Console(width=100).print(results_table(results, "held-out"))
    shown = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert rows.keys() == {"text/chain", "text/story", "text", "mean"}
    assert "0.0" in rows["text/chain"] and "100.0" in rows["text/story"]
    assert "50.0" in rows["text"]
    assert gain_lines(results, "final", "base")[1].split()[:2] == ["text", "+50.0"]


def test_results_do_not_depend_on_chunks(make_config, tmp_path, monkeypatch):
    config = make_config(tmp_path, evaluation={"num_problems": 7, "num_samples": 2})
    engine = create_engine(config)
    engine.spawn("one", "tiny")
    engine.spawn("other", "tiny")
    try:
        whole = evaluate_branches(engine, config, ["one", "other"])
        monkeypatch.setattr("copd.run.evaluation._CHUNK", 3)
        chunked = evaluate_branches(engine, config, ["one", "other"])
    finally:
        engine.close()
    assert chunked == whole
    assert whole["one"] == whole["other"]
    assert {len(result.accuracy) for result in whole["one"].values()} == {7}


def test_the_configured_split_is_evaluated_unless_another_is_named(make_config, tmp_path):
    settings = {"num_problems": 6, "num_samples": 2}
    test, validation = (
        make_config(tmp_path, evaluation={**settings, "split": split})
        for split in ("test", "validation")
    )
    engine = create_engine(test)
    engine.spawn("one", "tiny")
    try:
        found = evaluate_branches(engine, validation, ["one"])
        assert found == evaluate_branches(engine, test, ["one"], split="validation")
        assert found != evaluate_branches(engine, test, ["one"])
    finally:
        engine.close()

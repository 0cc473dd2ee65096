"""The pilot: its plan's students, its correlation on known points, and a small run read again."""

import json

import numpy as np
import pytest

from copd.config import Config
from copd.lab.study.pilot import Point, correlate, explain, main, partial, pearson, read_points
from copd.monitor.results import Estimate, from_json
from copd.run import commands

SETTINGS = {
    "seed": 2,
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {"text": {"type": "digits", "modality": "text"}},
    "recipe": {
        "type": "pilot",
        "domain": "text",
        "temperatures": [0.5, 1.0, 2.5],
        "expert_steps": 2,
        "student_steps": 1,
        "opd_steps": 1,
    },
    "rollout": {"num_prompts": 4, "group_size": 4, "max_completion_tokens": 12},
    "optimizer": {"learning_rate": 3e-3},
    "monitor": {"every": 3, "num_problems": 4},
    "evaluation": {"every": 3, "num_problems": 12, "num_samples": 4},
    "engine": {"num_threads": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("pilot") / "run"
    return commands.train(Config.model_validate({**SETTINGS, "output_dir": root}))


def test_the_points_of_a_run_are_what_it_measured(run):
    points = read_points(run)
    assert [p.student for p in points] == ["student_50", "student_100", "student_250"]
    lines = [json.loads(line) for line in (run / "dynamics.jsonl").read_text().splitlines()]
    [line] = [line for line in lines if line["step"] == 3]
    assert line["models"] == ["expert", "student_50", "student_100", "student_250", "base"]
    [measured] = (run / "evaluations.jsonl").read_text().splitlines()
    before = from_json(json.loads(measured)["results"])
    after = from_json(json.loads((run / "eval.json").read_text()))
    for row, point in enumerate(points, start=1):
        assert point.overlap == line["domains"]["text"]["overlap"][row][0] < 1
        assert point.symmetric_kl == line["domains"]["text"]["symmetric_kl"][row][0] > 0
        first, last = (np.mean(r[point.student]["text"].accuracy) for r in (before, after))
        assert point.before.mean == pytest.approx(first)
        assert point.gain.mean == pytest.approx(last - first)
        assert point.gain.low <= point.gain.mean <= point.gain.high
        assert point.room == pytest.approx(np.mean(before["expert"]["text"].accuracy) - first)


def test_students_are_trained_at_their_own_temperature(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == ["expert", "expert", "students", "opd"]
    students = lines[2]["branches"]
    assert all(own["rlvr/text/train_inference_mismatch"] < 1e-4 for own in students.values())
    # entropy of a native batch is at the temperature it was sampled at
    entropies = [students[f"student_{t}"]["rlvr/text/entropy"] for t in (50, 100, 250)]
    assert entropies == sorted(entropies) and entropies[0] < 0.5 * entropies[2]
    assert all("opd/from_expert/text/overlap" in own for own in lines[3]["branches"].values())


def test_the_pilot_says_what_it_found(run, capsys):
    assert main([str(run)]) in (0, 2)  # with twelve problems all gains may be equal
    shown = capsys.readouterr()
    assert "student_250" in shown.out or "recipe.temperatures" in shown.err
    assert main([str(run.parent)]) == 2
    assert "error:" in capsys.readouterr().err


def test_correlation_of_known_points():
    points = [(0.1, 1.0), (0.2, 2.0), (0.3, 2.0), (0.4, 3.0)]
    x, y = np.array(points).T
    found = correlate([points])
    assert found.r.mean == pytest.approx(np.corrcoef(x, y)[0, 1]) == pytest.approx(0.9486833)
    assert found.r_squared.mean == pytest.approx(0.9)
    assert found.slope == pytest.approx(6.0)
    assert found.r.low < found.r.mean <= found.r.high <= 1.0 + 1e-12
    assert (found.num_points, found.num_runs) == (4, 1)


def test_a_perfect_line_has_no_interval_and_noise_has_a_wide_one():
    line = [(x, 2 * x + 1) for x in np.linspace(0, 1, 8)]
    assert correlate([line]).r.low == pytest.approx(1.0)
    rng = np.random.default_rng(0)
    noise = [(float(x), float(y)) for x, y in rng.normal(size=(40, 2))]
    found = correlate([noise]).r
    assert found.low < 0 < found.high and 0.3 < found.high - found.low < 1.2


def test_the_interval_covers_the_true_correlation():
    rng, true, covered = np.random.default_rng(1), 0.8, 0
    for _ in range(100):
        x, e = rng.normal(size=(2, 24))
        y = true * x + np.sqrt(1 - true**2) * e
        found = correlate([list(zip(x.tolist(), y.tolist(), strict=True))], resamples=300).r
        covered += found.low <= true <= found.high
    assert 85 <= covered <= 100


def test_runs_are_resampled_before_their_points():
    """Two runs that differ only as a whole: few independent things, so a wide interval."""
    rng = np.random.default_rng(0)
    here = [(float(x), float(y)) for x, y in 0.1 * rng.normal(size=(30, 2))]
    there = [(x + 1.0, y + 1.0) for x, y in here]
    apart, together = correlate([here, there]).r, correlate([here + there]).r
    assert apart.mean == together.mean > 0.9
    assert apart.low < 0.5 < 0.9 < together.low


@pytest.mark.parametrize("points", [[(1.0, 0.0)] * 5, [(0.1, 0.0), (0.2, 0.0), (0.3, 0.0)]])
def test_points_that_do_not_differ_are_refused(points):
    assert np.isnan(pearson(np.array(points)))
    with pytest.raises(ValueError, match=r"recipe\.temperatures"):
        correlate([points])


@pytest.mark.parametrize(
    ("section", "change", "remedy"),
    [
        ("monitor", {"every": 0}, "monitor.every .* Set it to 3"),
        ("evaluation", {"every": 2, "num_problems": 12}, "evaluation.every .* Set it to 3"),
        ("recipe", {**SETTINGS["recipe"], "temperatures": [1.0, 1.001, 2.0]}, "Remove one"),
        ("recipe", {**SETTINGS["recipe"], "domain": "txt"}, "Did you mean 'text'"),
    ],
)
def test_mistakes_are_named_before_anything_runs(section, change, remedy):
    with pytest.raises(ValueError, match=remedy):
        Config.model_validate({**SETTINGS, section: change})


def test_what_the_room_explains_is_told_from_what_overlap_does():
    """Gain is the room and nothing else; overlap is low where there is room."""
    rng = np.random.default_rng(3)
    room, noise, more = rng.uniform(0, 0.5, 40), *0.02 * rng.normal(size=(2, 40))
    points = [
        Point(0, "s", float(0.9 - r / 5 + e), 0.0, Estimate(0, 0, 0), Estimate(float(g), 0, 0), r)
        for r, e, g in zip(room.tolist(), noise, room + more, strict=True)
    ]
    rows = np.array([(p.overlap, p.gain.mean, p.room) for p in points])
    assert pearson(rows[:, :2]) < -0.7
    found = explain([points])
    assert found is not None and found.room.low > 0.95
    assert found.at_equal_room.low < 0 < found.at_equal_room.high
    xy, xz, yz = (pearson(rows[:, pair]) for pair in ([0, 1], [0, 2], [1, 2]))
    known = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert found.at_equal_room.mean == partial(rows) == pytest.approx(known)
    assert explain([points[:1] * 3]) is None

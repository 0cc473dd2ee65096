"""Stages with an overlap band: the rule on given lines, and a run that follows it."""

import json

import pytest

from copd.config import BandConfig
from copd.recipes import OPD, RLVR, Stage
from copd.run import commands
from copd.run.band import apply_band, mean_overlap
from copd.storage import read_lines

NATIVE = (RLVR("text", "text"), RLVR("image", "image"))
CROSS = (OPD("text", "image", "image"), OPD("image", "text", "text"))
STAGE = Stage("mutual", 9, NATIVE + CROSS, BandConfig(low=0.6, high=0.8))


def line(on_image: float, on_text: float) -> dict:
    """Return dynamics in which text overlaps with image by `on_image` on images, and so on."""

    def matrix(of_text: float, of_image: float) -> dict:
        rows = [[1.0, of_text, 0.1], [of_image, 1.0, 0.1], [None] * 3]
        return {"overlap": rows}

    domains = {"text": matrix(0.0, on_text), "image": matrix(on_image, 0.0)}
    return {"models": ["text", "image", "base"], "domains": domains}


def test_the_overlap_is_that_of_students_with_teachers_on_the_teachers_domain():
    assert mean_overlap(line(0.5, 0.9), STAGE) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("overlaps", "is_taught"),
    [
        ([], False),
        ([1.0], False),
        ([1.0, 0.7], False),
        ([1.0, 0.6], True),
        ([1.0, 0.5, 0.7], True),
        ([1.0, 0.5, 0.8], False),
        ([1.0, 0.5, 0.9, 0.7], False),
        ([1.0, 0.5, 0.9, 0.6], True),
    ],
)
def test_teachers_start_below_the_band_and_pause_above_it(overlaps: list[float], is_taught: bool):
    stage = apply_band(STAGE, [line(o, o) for o in overlaps])
    assert stage.actions == (NATIVE + CROSS if is_taught else NATIVE)
    assert (stage.name, stage.steps) == ("mutual", 9)


def test_a_stage_without_a_band_is_as_planned():
    plain = Stage("mutual", 2, NATIVE + CROSS)
    assert apply_band(plain, [line(1.0, 1.0)]) == plain


def test_a_run_has_teachers_only_where_its_dynamics_say_so(make_config, tmp_path):
    recipe = {"type": "copd", "rounds": 1, "rlvr_steps": 2, "opd_steps": 1}
    recipe["band"] = {"low": 0.9999, "high": 1.0}
    monitor = {"every": 1, "num_problems": 2, "num_samples": 1}
    root = commands.train(make_config(tmp_path / "run", recipe=recipe, monitor=monitor))
    [stage] = json.loads((root / "plan.json").read_text())["stages"]
    assert (stage["steps"], stage["band"]) == (3, recipe["band"])
    start = next(read_lines(root / "dynamics.jsonl"))
    cross = tuple(OPD(student, "text", "text") for student in ("image", "video"))
    taught = [
        {name for name, metrics in own["branches"].items() if any("opd/" in k for k in metrics)}
        for own in read_lines(root / "metrics.jsonl")
    ]
    assert mean_overlap(start, Stage("mutual", 1, cross)) == 1.0
    assert taught == [set(), *[{"text", "image", "video"}] * 2]

"""Stages that the overlap governs: the rule on written lines, and a run that obeys it."""

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
    """A comparison in which text is `on_image` like image on images, and so on; base last."""

    def matrix(text_like_image: float, image_like_text: float) -> dict:
        rows = [[1.0, text_like_image, 0.1], [image_like_text, 1.0, 0.1], [None] * 3]
        return {"overlap": rows}

    domains = {"text": matrix(0.0, on_text), "image": matrix(on_image, 0.0)}
    return {"models": ["text", "image", "base"], "domains": domains}


def test_the_overlap_is_that_of_students_with_teachers_on_the_taught_domain():
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
def test_teachers_begin_below_the_band_and_end_above_it(overlaps: list[float], is_taught: bool):
    stage = apply_band(STAGE, [line(o, o) for o in overlaps])
    assert stage.actions == (NATIVE + CROSS if is_taught else NATIVE)
    assert (stage.name, stage.steps) == ("mutual", 9)


def test_a_stage_without_a_band_is_as_planned():
    plain = Stage("mutual", 2, NATIVE + CROSS)
    assert apply_band(plain, [line(1.0, 1.0)]) == plain


def test_a_run_is_taught_only_where_its_comparisons_say_so(make_config, tmp_path):
    recipe = {"type": "copd", "rounds": 1, "rlvr_steps": 2, "opd_steps": 1}
    recipe["band"] = {"low": 0.9999, "high": 1.0}
    monitor = {"every": 1, "num_problems": 2, "num_samples": 1}
    root = commands.train(make_config(tmp_path / "run", recipe=recipe, monitor=monitor))
    [stage] = json.loads((root / "plan.json").read_text())["stages"]
    assert (stage["steps"], stage["band"]) == (3, recipe["band"])
    compared = list(read_lines(root / "dynamics.jsonl"))
    cross = tuple(OPD(s, t, t) for s in compared[0]["models"][:3] for t in ("text",) if s != t)
    taught = [
        {name for name, metrics in own["branches"].items() if any("opd/" in k for k in metrics)}
        for own in read_lines(root / "metrics.jsonl")
    ]
    assert mean_overlap(compared[0], Stage("mutual", 1, cross)) == 1.0
    assert taught == [set(), *[{"text", "image", "video"}] * 2]

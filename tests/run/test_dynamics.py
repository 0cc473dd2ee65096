"""The comparison of all branches with each other and the base, as a run writes it."""

import pytest
import torch

from copd.branch import Branch
from copd.engine import LocalEngine
from copd.run import commands
from copd.run.dynamics import measure
from copd.run.seeds import derive_seed
from copd.run.step import REFERENCE
from copd.storage import read_lines
from copd.types import ProblemId, RolloutRequest

MONITOR = {"every": 2, "num_problems": 2, "num_samples": 1}


def test_rows_speak_and_columns_compare(make_config, tmp_path):
    config = make_config(tmp_path, monitor=MONITOR)
    engine = LocalEngine(config)
    for seed, name in enumerate(("a", "b", REFERENCE)):
        engine.spawn(name, "tiny")
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: value + 0.03 * (name != REFERENCE) * torch.randn(value.shape, generator=generator)
            for key, value in engine.call(Branch.weights, {name: None})[name].items()
        }
        engine.call(Branch.set_weights, {name: moved})
    found = measure(engine, config, ("a", "b"), 7, "rlvr")["domains"]["image"]
    problems = tuple(ProblemId("image", "validation", i) for i in range(2))
    place = derive_seed(config.seed, "image", "dynamics")
    wanted = RolloutRequest("dynamics", problems, 1.0, place, "step 7")
    models = ("a", "b", REFERENCE)
    for row, speaker in enumerate(("a", "b")):
        [portrait] = engine.call(Branch.probe, {speaker: [wanted]})[speaker]
        for column, judge in enumerate(models):
            if judge == speaker:
                continue
            [[likeness]] = engine.call(Branch.measure_agreement, {judge: [[portrait]]})[judge]
            overlap, divergence = (found[name][row][column] for name in ("overlap", "symmetric_kl"))
            assert overlap == pytest.approx(likeness.overlap, abs=1e-6)
            assert divergence == pytest.approx(likeness.symmetric_kl, rel=1e-3)
        assert found["entropy"][row] == pytest.approx(portrait.entropy, rel=1e-4)
    one, other = (found["symmetric_kl"][i][1 - i] for i in range(2))
    assert abs(one - other) > 0.01 * one  # on whose tokens matters


@pytest.mark.parametrize(
    ("recipe", "models"),
    [
        ({"type": "experts", "steps": 1}, ["text", "image", "video", "base"]),
        ({"type": "mixed", "steps": 1}, ["unified", "base"]),
    ],
)
def test_branches_without_a_teacher_are_compared_too(make_config, tmp_path, recipe, models):
    root = commands.train(make_config(tmp_path / "run", recipe=recipe, monitor=MONITOR))
    start, end = read_lines(root / "dynamics.jsonl")
    assert start["models"] == end["models"] == models
    assert (start["step"], end["step"]) == (0, 1)
    for domain in end["domains"].values():
        assert len(domain["overlap"]) == len(domain["symmetric_kl"][0]) == len(models)
        assert domain["symmetric_kl"][0][-1] > 0


def test_it_shares_the_base_with_reward_extrapolation(make_config, tmp_path):
    recipe = {"type": "mopd", "expert_steps": 1, "opd_steps": 1}
    distill = {"type": "sampled", "extrapolation": 1.5}
    config = make_config(tmp_path / "run", recipe=recipe, distill=distill, monitor=MONITOR)
    start, end = read_lines(commands.train(config) / "dynamics.jsonl")
    assert start["models"] == end["models"] == ["text", "image", "video", "unified", "base"]
    text = end["domains"]["text"]
    assert text["symmetric_kl"][3][4] > 1e-5 and len(text["overlap"][4]) == 5

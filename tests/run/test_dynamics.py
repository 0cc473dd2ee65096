"""The comparison of all branches with each other and the base, as a run writes it."""

import pytest
import torch

from copd.branch import Branch
from copd.config import BASE
from copd.engine import LocalEngine
from copd.run import commands
from copd.run.dynamics import measure_dynamics
from copd.run.seeds import derive_seed
from copd.storage import read_lines
from copd.types import ProblemId, RolloutRequest

MONITOR = {"every": 2, "num_problems": 2, "num_samples": 1}


def test_rows_sample_and_columns_are_compared(make_config, tmp_path):
    config = make_config(tmp_path, monitor=MONITOR)
    engine = LocalEngine(config)
    models = ("a", "b", BASE)
    for seed, name in enumerate(models):
        engine.spawn(name, "tiny")
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: value + 0.03 * (name != BASE) * torch.randn(value.shape, generator=generator)
            for key, value in engine.call(Branch.weights, {name: None})[name].items()
        }
        engine.call(Branch.set_weights, {name: moved})
    line = measure_dynamics(engine, config, ("a", "b"), 7, "rlvr")
    matrices = line["domains"]["image"]
    problems = tuple(ProblemId("image", "validation", i) for i in range(2))
    seed = derive_seed(config.seed, "image", "dynamics")
    request = RolloutRequest("dynamics", problems, 1.0, seed, "step 7")
    for row, sampling in enumerate(("a", "b")):
        [rollouts] = engine.call(Branch.probe, {sampling: [request]})[sampling]
        for column, judge in enumerate(models):
            if judge == sampling:
                continue
            [[agreement]] = engine.call(Branch.measure_agreement, {judge: [[rollouts]]})[judge]
            overlap, divergence = (matrices[n][row][column] for n in ("overlap", "symmetric_kl"))
            assert overlap == pytest.approx(agreement.overlap, abs=1e-6)
            assert divergence == pytest.approx(agreement.symmetric_kl, rel=1e-3)
        assert matrices["entropy"][row] == pytest.approx(rollouts.entropy, rel=1e-4)
    one, other = (matrices["symmetric_kl"][i][1 - i] for i in range(2))
    assert abs(one - other) > 0.01 * one  # it matters whose completions are compared


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


def test_one_frozen_base_serves_dynamics_and_reward_extrapolation(make_config, tmp_path):
    recipe = {"type": "mopd", "expert_steps": 1, "opd_steps": 1}
    distill = {"type": "sampled", "extrapolation": 1.5}
    config = make_config(tmp_path / "run", recipe=recipe, distill=distill, monitor=MONITOR)
    start, end = read_lines(commands.train(config) / "dynamics.jsonl")
    assert start["models"] == end["models"] == ["text", "image", "video", "unified", "base"]
    text = end["domains"]["text"]
    assert text["symmetric_kl"][3][4] > 1e-5 and len(text["overlap"][4]) == 5

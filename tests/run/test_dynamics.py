"""The comparison of all branches with each other and the base, as a run writes it."""

import pytest

from copd.run import commands
from copd.run.directory import read_lines

MONITOR = {"every": 2, "num_problems": 2, "num_samples": 1}


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

"""Teachers that may be steps old: which weights score, also in a resumed run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from copd.branch import Branch
from copd.config import Config
from copd.engine import LocalEngine
from copd.recipes import OPD, build_plan
from copd.run import commands
from copd.run.step import StepResult, _score_request, take_steps
from copd.run.windows import positions_of
from copd.types import TeacherOutputs

DOMAINS = ("text", "image")
LORA = {"path": "tiny", "device": "cpu", "branches": "lora", "lora": {"rank": 2}}
SETTINGS = {
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in DOMAINS},
    "rollout": {"num_prompts": 2, "group_size": 2, "max_completion_tokens": 6},
    "optimizer": {"learning_rate": 1e-2},
    "evaluation": {"base": False, "num_problems": 2, "num_samples": 1},
    "engine": {"num_threads": 1},
}


def make_config(opd_steps: int, max_staleness: int, **sections: Any) -> Config:
    recipe = {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": opd_steps}
    recipe["max_staleness"] = max_staleness
    return Config.model_validate({**SETTINGS, "recipe": recipe, **sections})


def run(config: Config) -> tuple[LocalEngine, list[StepResult], list[dict[str, Any]]]:
    """Take all steps; return their results and all branches' weights before each."""
    plan, engine, before, results = build_plan(config), LocalEngine(config), [], []
    for name in plan.branches:
        engine.spawn(name, "tiny")
    for position in positions_of(plan, range(1, plan.total_steps + 1), ()):
        before.append(engine.call(Branch.weights, dict.fromkeys(DOMAINS)))
        results += take_steps(engine, config, [position])
    return engine, results, before


def without_staleness(result: StepResult) -> dict[str, dict[str, float]]:
    return {
        name: {key: value for key, value in metrics.items() if not key.endswith("/staleness")}
        for name, metrics in result.metrics.items()
    }


@pytest.mark.parametrize("model", [SETTINGS["model"], LORA], ids=["full", "lora"])
def test_a_snapshot_of_this_step_scores_like_the_teacher_itself(model: dict[str, Any]):
    """A mutual stage of one step never uses older weights: the bits are those without staleness."""
    _, results, _ = run(make_config(1, 3, model=model))
    _, expected, _ = run(make_config(1, 0, model=model))
    assert [without_staleness(r) for r in results] == [dict(r.metrics) for r in expected]
    assert results[1].metrics["text"]["opd/from_image/image/staleness"] == 0.0
    assert "opd/from_image/image/staleness" not in expected[1].metrics["text"]


@pytest.mark.parametrize("model", [SETTINGS["model"], LORA], ids=["full", "lora"])
def test_scores_are_those_of_the_snapshot(model: dict[str, Any]):
    """At most one step old: steps 2 and 3 use the weights before 2, step 4 those before 4."""
    config = make_config(3, 1, model=model)
    engine, results, before = run(config)
    engine.spawn("then", "tiny")
    positions = positions_of(build_plan(config), range(2, 5), ())
    for position, source, staleness in zip(positions, (2, 2, 4), (0, 1, 0), strict=True):
        result = results[position.step - 1]
        for student, teacher in (("text", "image"), ("image", "text")):
            key = f"opd/from_{teacher}/{teacher}"
            assert result.metrics[student][f"{key}/staleness"] == staleness
            (action,) = (a for a in position.stage.actions_of(student) if a.key == key)
            assert isinstance(action, OPD)
            (batch,) = (one for one in result.batches[student] if one.rollouts.action == key)
            request = _score_request(config, position, action, batch.rollouts)

            def score(weights: dict[str, torch.Tensor], request: Any = request) -> TeacherOutputs:
                engine.call(Branch.set_weights, {"then": weights})
                return engine.call(Branch.score, {"then": [request]})["then"][0]

            assert batch.teacher is not None
            then, now = (
                score(before[source - 1][teacher]),
                score(before[position.step - 1][teacher]),
            )
            assert np.array_equal(batch.teacher.logprobs, then.logprobs)
            assert np.array_equal(batch.teacher.topk_logprobs, then.topk_logprobs)
            assert np.array_equal(then.logprobs, now.logprobs) == (staleness == 0)


def test_a_resumed_run_has_the_snapshot(tmp_path: Path):
    """Stop after step 2, whose snapshot step 3 uses, with the file name of earlier versions."""
    config = make_config(2, 1, output_dir=tmp_path / "run", checkpoint={"every": 1, "keep": 9})
    commands.train(config)
    stopped = tmp_path / "stopped"
    shutil.copytree(config.output_dir, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step_00000003")
    shutil.rmtree(stopped / "final")
    for name in ("eval.json", "merge.json"):
        (stopped / name).unlink()
    first, second = (stopped / "checkpoints" / f"step_0000000{step}" / "text" for step in (1, 2))
    assert not (first / "snapshot.safetensors").exists()
    (second / "snapshot.safetensors").rename(second / "kept.safetensors")
    settings = json.loads((stopped / "config.json").read_text())
    (stopped / "config.json").write_text(json.dumps({**settings, "output_dir": str(stopped)}))
    commands.resume(stopped)
    for name in ("metrics.jsonl", "rollouts.jsonl", "eval.json", "final/model.safetensors"):
        assert (stopped / name).read_bytes() == (config.output_dir / name).read_bytes(), name


def test_ranks_cannot_take_snapshots():
    with pytest.raises(ValueError, match=r"cannot share recipe.max_staleness.*Leave one of the"):
        make_config(1, 1, engine={"type": "ray", "ranks_per_branch": 2})

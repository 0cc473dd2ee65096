"""Runs of every recipe, killed and resumed in every stage, and the files they write."""

import itertools
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from copd.branch import Branch
from copd.config import Config
from copd.engine import LocalEngine
from copd.monitor.results import from_json
from copd.run import commands
from copd.run.checkpoint import latest_checkpoint
from copd.storage import read_lines

DETERMINISTIC = (
    "metrics.jsonl",
    "rollouts.jsonl",
    "evaluations.jsonl",
    "dynamics.jsonl",
    "eval.json",
    "plan.json",
    "merge.json",
)

MONITOR = {"every": 2, "num_problems": 2, "num_samples": 1}


def end_state(root: Path) -> dict[str, bytes]:
    """Return the files of a run that must not depend on how often it was killed."""
    files = [root / name for name in DETERMINISTIC if (root / name).exists()]
    files += sorted((root / "final").rglob("*.safetensors"))
    files += [p for p in sorted((root / "checkpoints").rglob("*")) if p.is_file()]
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def require_equal(files: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert files.keys() == expected.keys()
    assert [name for name in files if files[name] != expected[name]] == []


def newest(root: Path) -> Path:
    checkpoint = latest_checkpoint(root / "checkpoints")
    assert checkpoint is not None
    return checkpoint.folder


def run_and_die(
    config: Config, method: str, call: int, command: Callable[[Config], object] = commands.train
) -> None:
    """Run a command in a forked process that is killed at the n-th call of a Branch method."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
        return
    try:
        original, calls = getattr(Branch, method), itertools.count(1)

        def deadly(self, argument):
            if next(calls) == call:
                if method == "save":  # half-way through a checkpoint: some files are there
                    original(self, argument)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, argument)

        setattr(Branch, method, deadly)
        command(config)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def resume(config: Config) -> Path:
    return commands.resume(config.output_dir)


@pytest.fixture(scope="module")
def undisturbed(make_config, tmp_path_factory) -> dict[str, bytes]:
    config = make_config(tmp_path_factory.mktemp("undisturbed") / "run")
    commands.train(config)
    return end_state(config.output_dir)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("evaluate", 2),  # while the base is evaluated
        ("sample", 6 + 5),  # rlvr stage, after the 6 of the preflight
        ("update", 3),  # rlvr stage, two branches updated, one not
        ("score", 6 + 2),  # mutual stage, one teacher has scored
        ("update", 8),  # mutual stage, half-way
        ("save", 1),  # the first checkpoint, one branch written
        ("save", 5),  # the second checkpoint
        ("save", 9),  # the last checkpoint, all branches written, not yet renamed
        ("export", 1),  # the final model
        ("evaluate", 3 + 2),  # the last evaluation
    ],
)
def test_killed_and_resumed_ends_with_the_same_bits(
    make_config, undisturbed, tmp_path, method, call
):
    config = make_config(tmp_path / "run")
    run_and_die(config, method, call)
    if (config.output_dir / "config.json").exists():
        resume(config)
    else:
        commands.train(config)
    require_equal(end_state(config.output_dir), undisturbed)


@pytest.fixture(scope="module")
def with_dynamics(make_config, tmp_path_factory) -> dict[str, bytes]:
    config = make_config(tmp_path_factory.mktemp("with_dynamics") / "run", monitor=MONITOR)
    commands.train(config)
    return end_state(config.output_dir)


def test_dynamics_change_no_bit(undisturbed, with_dynamics):
    """Metrics, rollouts, weights, optimizers, results."""
    assert {name: with_dynamics[name] for name in undisturbed} == undisturbed
    assert with_dynamics.keys() - undisturbed == {"dynamics.jsonl"}


def test_all_branches_are_compared_with_each_other_and_the_base(with_dynamics):
    lines = [json.loads(line) for line in with_dynamics["dynamics.jsonl"].splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 3]  # the start, every second, the end
    assert [line["stage"] for line in lines] == ["start", "rlvr", "mutual"]
    for line in lines:
        assert line["models"] == ["text", "image", "video", "base"]
        assert set(line["domains"]) == {"text", "image", "video"}
    for domain, start in lines[0]["domains"].items():
        later = lines[1]["domains"][domain]
        assert start["entropy"][3] is None and all(value > 0 for value in start["entropy"][:3])
        assert start["overlap"] == [[1.0] * 4] * 3 + [[None] * 4]
        for row in range(3):
            assert start["symmetric_kl"][row] == pytest.approx([0.0] * 4, abs=1e-6)
            assert (later["overlap"][row][row], later["symmetric_kl"][row][row]) == (1.0, 0.0)
        assert all(kl > 1e-5 for kl in later["symmetric_kl"][0][1:])  # only text was rewarded
        assert later["symmetric_kl"][3] == [None] * 4


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("update", 1),  # dynamics of the start are written, and nothing is saved
        ("measure_agreement", 4 + 2),  # during the dynamics after the second step
        ("update", 7),  # after those dynamics and their checkpoint
        ("save", 9),  # all dynamics are written, the last checkpoint is not yet renamed
    ],
)
def test_killed_around_its_dynamics(make_config, with_dynamics, tmp_path, method, call):
    config = make_config(tmp_path / "run", monitor=MONITOR)
    run_and_die(config, method, call)
    resume(config)
    require_equal(end_state(config.output_dir), with_dynamics)


@pytest.fixture(scope="module")
def make_with_band(make_config):
    """Two branches that have teachers from the third step on, by the dynamics after the second."""
    names = ("text", "image")
    recipe = {"type": "copd", "rounds": 1, "rlvr_steps": 2, "opd_steps": 2}
    sections = {
        "recipe": {**recipe, "band": {"low": 0.9999, "high": 1.0}},
        "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in names},
        "monitor": MONITOR,
        "evaluation": {"base": False, "num_problems": 2, "num_samples": 1},
    }
    return lambda root: make_config(root, **sections)


@pytest.fixture(scope="module")
def with_band(make_with_band, tmp_path_factory) -> dict[str, bytes]:
    return end_state(commands.train(make_with_band(tmp_path_factory.mktemp("with_band") / "run")))


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("save", 3),  # after the second step: dynamics are written, the checkpoint is not
        ("update", 6 + 1),  # the fourth step, two steps after the dynamics that count for it
    ],
)
def test_a_killed_run_with_a_band_follows_its_dynamics(
    make_with_band, with_band, tmp_path, method, call
):
    lines = [json.loads(line) for line in with_band["metrics.jsonl"].splitlines()]
    taught = [any("opd/" in key for key in line["branches"]["text"]) for line in lines]
    assert taught == [False, False, True, True]
    config = make_with_band(tmp_path / "run")
    run_and_die(config, method, call)
    resume(config)
    require_equal(end_state(config.output_dir), with_band)


def test_a_run_killed_again_and_again_still_ends_the_same(make_config, undisturbed, tmp_path):
    config = make_config(tmp_path / "run")
    run_and_die(config, "update", 5)
    for method, call in (("sample", 2), ("save", 2), ("update", 4)):
        run_and_die(config, method, call, resume)
    resume(config)
    require_equal(end_state(config.output_dir), undisturbed)


@pytest.mark.parametrize("every", [0, 2])
def test_a_resumed_run_evaluates_one_frozen_base(
    make_config, undisturbed, tmp_path, monkeypatch, every
):
    """The results of the base are lost; dynamics need a frozen base, too."""
    config = make_config(tmp_path / "run", monitor=MONITOR | {"every": every})
    run_and_die(config, "update", 8)
    (config.output_dir / "eval.json").unlink()
    spawn, spawned = LocalEngine.spawn, []

    def spying(engine, name, model, *, frozen=False):
        spawned.extend([name] * frozen)
        spawn(engine, name, model, frozen=frozen)

    monkeypatch.setattr(LocalEngine, "spawn", spying)
    resume(config)
    assert spawned == ["base"]
    files = end_state(config.output_dir)
    require_equal({name: files[name] for name in undisturbed}, undisturbed)


def test_the_files_of_a_run(make_config, tmp_path):
    config = make_config(
        tmp_path / "run", evaluation={"num_problems": 3, "num_samples": 2, "every": 2}
    )
    root = commands.train(config)
    lines = list(read_lines(root / "metrics.jsonl"))
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [line["stage"] for line in lines] == ["rlvr", "rlvr", "mutual"]
    last = lines[-1]
    assert set(last["branches"]) == {"text", "image", "video"}
    pair = {k for k in last["branches"]["image"] if k.startswith("opd/from_text/text/")}
    metrics = (
        "delta_mean",
        "delta_min",
        "delta_max",
        "overlap",
        "symmetric_kl",
        "entropy",
        "length",
    )
    assert {f"opd/from_text/text/{name}" for name in metrics} <= pair
    native = ("reward", "accuracy", "advantage_std", "entropy", "length", "truncated")
    assert {f"rlvr/image/{name}" for name in native} <= set(last["branches"]["image"])
    # 2 prompts x 2 completions: 1 batch in each of 2 steps, 3 batches in the mutual step
    cost = last["cost"]["image"]
    assert (cost["steps"], cost["prompts"], cost["completions"]) == (3, 10, 20)
    scored = sum(cost["scored_tokens"] for cost in last["cost"].values())
    crossed = sum(
        values[key] * 4
        for values in last["branches"].values()
        for key in values
        if key.startswith("opd/") and key.endswith("/length")
    )
    assert scored == pytest.approx(crossed)
    assert [line["step"] for line in read_lines(root / "evaluations.jsonl")] == [2]
    results = from_json(json.loads((root / "eval.json").read_text()))
    assert set(results) == {"base", "text", "image", "video", "unified"}
    assert all(len(r.accuracy) == 3 for own in results.values() for r in own.values())
    assert len(list((root / "checkpoints").iterdir())) == 2
    records = list(read_lines(root / "rollouts.jsonl"))
    assert len(records) == 3 + 3 + 9
    assert all("delta" in rollout for rollout in records[-1]["rollouts"])


def test_the_merged_model_is_the_average_of_the_branches(make_config, undisturbed, tmp_path):
    root = tmp_path / "run"
    commands.train(make_config(root))
    folder = newest(root)
    branches = [
        load_file(folder / name / "model.safetensors") for name in ("text", "image", "video")
    ]
    final = load_file(root / "final" / "model.safetensors")
    assert not torch.equal(*[b["model.language_model.norm.weight"] for b in branches[:2]])
    for name, value in final.items():
        mean = torch.stack([branch[name].double() for branch in branches]).mean(0)
        assert torch.allclose(value.double(), mean, atol=1e-7), name


HUB = {
    "type": "copd",
    "topology": "hub",
    "hub": "text",
    "rounds": 1,
    "rlvr_steps": 1,
    "opd_steps": 1,
}
TRUNK = {"type": "copd", "topology": "trunk", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1}
FROM_BASE = {
    "type": "opd",
    "student": "base",
    "teacher": "text",
    "expert_steps": 1,
    "opd_steps": 1,
}
VARIANTS = {
    "averaged experts": {"type": "experts", "steps": 1, "merge": {"type": "uniform"}},
    "opd into the base": FROM_BASE,
    "hub alone": {**HUB, "merge": {"type": "select", "branch": "text"}},
    "chosen weights": {**HUB, "merge": {"type": "validation", "grid": 1}},
    "ties": {**HUB, "merge": {"type": "ties"}},
    "dare": {**HUB, "merge": {"type": "dare"}},
    "trunk": {**TRUNK, "merge": {"type": "select", "branch": "trunk"}},
    "beyond the teachers": {"type": "mopd", "expert_steps": 1, "opd_steps": 1},
}
"""Recipes that no committed configuration has; those run in tests/test_end_to_end.py."""


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run_on_all_three_domains(make_config, tmp_path, name):
    more = (
        {"distill": {"type": "sampled", "extrapolation": 1.5}}
        if name == "beyond the teachers"
        else {}
    )
    root = commands.train(make_config(tmp_path / "run", recipe=VARIANTS[name], **more))
    lines = list(read_lines(root / "metrics.jsonl"))
    plan = json.loads((root / "plan.json").read_text())
    assert len(lines) == sum(stage["steps"] for stage in plan["stages"])
    for line in lines:
        actions = plan["stages"][line["stage_index"]]["actions"]
        for action in actions:
            assert f"{action['key']}/loss" in line["branches"][action["branch"]]
    assert (root / "final" / "model.safetensors").exists() or not (plan["merge"] or plan["result"])


def test_a_branch_that_no_action_trains_does_not_move(make_config, tmp_path):
    root = commands.train(make_config(tmp_path / "run", recipe=FROM_BASE))
    first, last = sorted((root / "checkpoints").iterdir())
    for name, moved_in in (("student", "opd"), ("text", "experts")):
        before = load_file(first / name / "model.safetensors")
        after = load_file(last / name / "model.safetensors")
        same = all(torch.equal(before[key], after[key]) for key in before)
        assert same == (moved_in == "experts")


def test_branch_order_does_not_matter(make_config, tmp_path):
    recipe = {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 2}
    ends = []
    for number, names in enumerate((("text", "image", "video"), ("video", "text", "image"))):
        branches = {name: name for name in names}
        config = make_config(tmp_path / str(number), recipe={**recipe, "branches": branches})
        commands.train(config)
        folder = newest(config.output_dir)
        ends.append({n: load_file(folder / n / "model.safetensors") for n in names})
    for name, weights in ends[0].items():
        moved = [(weights[key] - ends[1][name][key]).abs().max() for key in weights]
        # gradients are summed in another order, nothing else may differ
        assert max(moved) < 2e-4, name


def test_a_finished_run_is_not_run_again(make_config, tmp_path, capsys):
    root = commands.train(make_config(tmp_path / "run"))
    before = end_state(root)
    capsys.readouterr()
    commands.resume(root)
    assert "held-out accuracy" in capsys.readouterr().out
    assert end_state(root) == before


def test_a_directory_with_a_run_is_not_overwritten(make_config, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="copd resume"):
        commands.train(make_config(tmp_path))


def test_a_run_ends_with_the_step_that_spends_its_tokens(make_config, tmp_path):
    whole = commands.train(make_config(tmp_path / "whole", checkpoint={"every": 1, "keep": 9}))
    costs = [line["cost"] for line in read_lines(whole / "metrics.jsonl")]
    after = [sum(c["sampled_tokens"] for c in cost.values()) for cost in costs]
    config = make_config(tmp_path / "run", max_tokens=after[0] + 1)
    run_and_die(config, "export", 1)
    resume(config)  # must not train any further
    lines = (config.output_dir / "metrics.jsonl").read_bytes()
    assert lines == b"".join((whole / "metrics.jsonl").read_bytes().splitlines(True)[:2])
    for name in ("text", "image", "video"):
        file = f"{name}/model.safetensors"
        expected = (whole / "checkpoints" / "step_00000002" / file).read_bytes()
        assert (newest(config.output_dir) / file).read_bytes() == expected


def test_milestones_stay_and_only_configured_models_are_evaluated(make_config, tmp_path, capsys):
    config = make_config(
        tmp_path / "run",
        checkpoint={"every": 9, "keep": 1, "milestones": (1,)},
        evaluation={"num_problems": 3, "num_samples": 2, "base": False, "branches": False},
    )
    root = commands.train(config)
    names = sorted(p.name for p in (root / "checkpoints").iterdir())
    assert names == ["step_00000001", "step_00000003"]
    assert list(json.loads((root / "eval.json").read_text())) == ["unified"]
    before = (root / "metrics.jsonl").stat().st_mtime_ns
    commands.resume(root)
    assert (root / "metrics.jsonl").stat().st_mtime_ns == before
    assert "base" not in capsys.readouterr().out

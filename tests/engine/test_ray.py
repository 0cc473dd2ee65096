"""Branches as Ray actors give the same bits as in one process, also when processes are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from copd.branch import Branch, Diverged
from copd.config import Config, RayEngineConfig, load_config
from copd.engine import BranchLost, BranchTask, LocalEngine, create_engine, run_tasks, wait_for
from copd.run import commands, runner

pytestmark = pytest.mark.timeout(1800)

SETTINGS = {
    "seed": 3,
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in ("text", "image")},
    "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 2},
    "rollout": {"num_prompts": 2, "group_size": 2, "max_completion_tokens": 8},
    "optimizer": {"learning_rate": 1e-3},
    "evaluation": {"num_problems": 3, "num_samples": 2},
    "checkpoint": {"every": 1, "keep": 9},
}
RAY = {"type": "ray", "num_cpus": 0}
"""For the cluster of these tests, which may have more branches than CPUs."""

FOREVER = 1e6
"""Seconds; longer than the time limit of any test."""


def make_config(root: Path, **sections) -> Config:
    return Config.model_validate({**SETTINGS, "output_dir": root, **sections})


def end_state(root: Path) -> dict[str, bytes]:
    """Return the files of a run that must not depend on where branches live."""
    files = [p for p in sorted(root.rglob("*")) if p.is_file()]
    other = {"config.json", "timings.jsonl"}
    return {str(p.relative_to(root)): p.read_bytes() for p in files if p.name not in other}


def require_equal(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_run_has_the_same_bits_on_both_engines(cluster, tmp_path, max_staleness):
    """Metrics, rollouts, dynamics, checkpoints, merge and results; branches may be steps apart."""
    sections = {
        "recipe": {**SETTINGS["recipe"], "rounds": 2, "max_staleness": max_staleness},
        "monitor": {"every": 3, "num_problems": 2, "num_samples": 1},
        "checkpoint": {"every": 4},
    }
    for engine in ({"type": "local", "num_threads": 1}, RAY):
        commands.train(make_config(tmp_path / engine["type"], engine=engine, **sections))
    local = end_state(tmp_path / "local")
    assert {"metrics.jsonl", "dynamics.jsonl", "final/model.safetensors"} <= local.keys()
    require_equal(end_state(tmp_path / "ray"), local)


def deadly(method: Callable[[Branch, Any], Any], victim: str, calls: tuple[int, ...], marks: Path):
    """Return the method, but its n-th calls kill the victim's process, counted over restarts."""

    def wrapped(branch: Branch, value: Any) -> Any:
        if branch.name == victim:
            call = len(list(marks.glob(f"{method.__name__}*"))) + 1
            (marks / f"{method.__name__}{call}").touch()
            if call in calls:
                os.kill(os.getpid(), signal.SIGKILL)
        return method(branch, value)

    wrapped.__name__ = method.__name__
    return wrapped


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 9])
def test_killed_branches_do_not_change_the_results(cluster, tmp_path, capsys, every):
    """In sampling, scoring and the update, with adapters: the run recovers by itself.

    It does so from the step before, or from the start, where branches may have been steps apart.
    """
    from copd.engine.ray import RayEngine

    marks, calls = tmp_path / "marks", {"score": (3,), "sample": (3,), "update": (2,)}
    marks.mkdir()

    class Deadly(RayEngine):
        def call(self, method, inputs):
            at = calls.get(method.__name__)
            return super().call(deadly(method, "image", at, marks) if at else method, inputs)

    lora = {**SETTINGS["model"], "branches": "lora", "lora": {"rank": 2}}
    local = {"type": "local", "num_threads": 1}
    checkpoint = {"every": every}
    commands.train(make_config(tmp_path / "local", model=lora, engine=local, checkpoint=checkpoint))
    config = make_config(tmp_path / "ray", model=lora, engine=RAY, checkpoint=checkpoint)
    assert isinstance(config.engine, RayEngineConfig)
    engine = Deadly(config, config.engine)
    capsys.readouterr()
    try:
        runner.Runner(config, engine, Console(width=200)).run()
    finally:
        engine.close()
    output = capsys.readouterr().out
    for method in calls:
        assert (
            f"was lost in {method}: The actor is dead because its worker process has died" in output
        )
    assert output.count("branch 'image' (process ") == len(calls)
    assert output.count(f"Beginning again after step {1 if every == 1 else 0}, ") == len(calls)
    require_equal(end_state(tmp_path / "ray"), end_state(tmp_path / "local"))


@pytest.fixture(scope="module")
def engine(cluster, tmp_path_factory) -> Iterator[Any]:
    from copd.engine.ray import RayEngine

    config = make_config(tmp_path_factory.mktemp("run"), engine=RAY)
    assert isinstance(config.engine, RayEngineConfig)
    engine = RayEngine(config, config.engine)
    yield engine
    engine.close()


@pytest.mark.ray
def test_values_and_errors_cross_unchanged(engine):
    """Threads, folders, arrays, errors and processes, with one actor."""
    engine.spawn("a", "tiny")

    def call(work: Callable[[Any], Any], value: Any = None) -> Any:
        return engine.call(lambda _, value: work(value), {"a": value})["a"]

    assert call(lambda _: (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"])) == (1, "1")
    assert call(lambda _: str(Path.cwd())) == str(Path.cwd())
    array, tensor = call(lambda value: value, (np.arange(3), torch.arange(3.0)))
    array += 1
    assert array.tolist() == [1, 2, 3] and torch.equal(tensor, torch.arange(3.0))

    def fail(error: Exception) -> None:
        raise error

    for error in (ValueError("one sentence."), Diverged("the loss is nan."), OSError(28, "full")):
        with pytest.raises(type(error)) as caught:
            call(fail, error)
        assert str(caught.value) == str(error)
        assert not hasattr(caught.value, "__notes__")
    with pytest.raises(KeyError) as bug:
        call(lambda _: {}["missing"])
    assert "in the process of a branch" in bug.value.__notes__[0]
    engine.drop("a")
    engine.spawn("a", "tiny", frozen=True)
    assert call(lambda _: Path.cwd()) == Path.cwd()
    engine.drop("a")


@pytest.mark.ray
def test_a_wrong_model_is_the_same_error_on_both_engines(engine, tmp_path):
    errors = []
    for each in (LocalEngine(make_config(tmp_path)), engine):
        with pytest.raises((ValueError, OSError)) as caught:
            each.spawn("a", str(tmp_path))
            each.call(lambda branch, _: None, {"a": None})
        errors.append((type(caught.value), str(caught.value)))
        each.clear()
    assert errors[0] == errors[1]


@pytest.mark.ray
def test_a_branch_that_hangs_is_lost_and_can_be_spawned_again(engine, monkeypatch):
    engine.spawn("a", "tiny")
    assert engine.call(lambda branch, _: branch.name, {"a": None}) == {"a": "a"}
    limited = engine._settings.model_copy(update={"time_limit": 0.5})
    monkeypatch.setattr(engine, "_settings", limited)
    with pytest.raises(BranchLost, match=r"'a' \(process \d+ on .*did not answer within 0.5 s"):
        engine.call(lambda _, seconds: time.sleep(seconds), {"a": FOREVER})
    monkeypatch.undo()
    engine.clear()
    engine.spawn("a", "tiny")
    assert engine.call(lambda branch, _: branch.name, {"a": None}) == {"a": "a"}
    engine.drop("a")


@pytest.mark.ray
def test_after_a_loss_no_branch_is_waited_for_and_its_cause_is_raised(engine):
    """The test ends in time only if the sleeping branch is killed."""

    def sleep(_: Branch, seconds: float) -> None:
        time.sleep(seconds)

    def die(_: Branch, seconds: float) -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    for name in ("a", "b"):
        engine.spawn(name, "tiny")
    wait_for(engine, ["a", "b"])
    tasks = {
        ("sleep", "a"): BranchTask("a", sleep, lambda _: FOREVER),
        ("die", "b"): BranchTask("b", die, lambda _: 0.5),
    }
    with pytest.raises(BranchLost, match=r"'b' \(process \d+ on .*lost in die: .*has died"):
        list(run_tasks(engine, [tasks]))
    engine.clear()


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process(tmp_path):
    """With a cluster of its own, relative paths, and Ctrl-C as a terminal sends it, to all."""
    pytest.importorskip("ray")
    (tmp_path / "config.json").write_text(json.dumps({**SETTINGS, "output_dir": "run"}))
    command = [sys.executable, "-m", "copd", "train", "config.json", "--engine.type", "ray"]
    command += ["--recipe.rlvr_steps", "9999", "--evaluation.base", "false"]
    run = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    )
    try:
        while not (tmp_path / "run" / "checkpoints" / "step_00000002").exists():
            assert run.poll() is None, run.communicate()
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)
        _, message = run.communicate()
        assert run.returncode == 130 and "copd resume run" in message
        while processes_in(tmp_path):  # for as long as the time limit of the test
            time.sleep(0.2)
    finally:
        if run.poll() is None:
            run.kill()
            run.communicate()


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of the processes that run in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder:
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_the_engine_is_local_by_default(tmp_path):
    for section in ({}, {"num_threads": 1}, {"type": "local"}):
        assert isinstance(create_engine(make_config(tmp_path, engine=section)), LocalEngine)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SETTINGS))
    config = load_config(path, ["--engine.type", "ray", "--engine.num_gpus", "0.5"])
    assert isinstance(config.engine, RayEngineConfig) and config.engine.num_gpus == 0.5
    with pytest.raises(ValueError, match=r"num_cpus does not belong to engine.type 'local'"):
        load_config(path, ["--engine.num_cpus", "2"])
    with pytest.raises(ValueError, match=r"max_failures does not belong to engine.type 'local'"):
        load_config(path, ["--engine.max_failures", "2"])
    with pytest.raises(ValueError, match=r"engine.type is unknown: got 'rya'.*'local'.*'ray'"):
        load_config(path, ["--engine.type", "rya"])


@pytest.mark.ray
def test_a_gpu_that_is_not_reserved_is_refused(tmp_path):
    pytest.importorskip("ray")
    model = {**SETTINGS["model"], "device": "cuda"}
    with pytest.raises(ValueError, match="Set it to 1"):
        create_engine(make_config(tmp_path, model=model, engine=RAY))


def test_without_ray_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from copd.config import Config\nfrom copd.engine import create_engine\n"
        f"create_engine(Config.model_validate({ {**SETTINGS, 'engine': RAY}!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode and 'pip install "copd[ray]"' in run.stderr.splitlines()[-1]

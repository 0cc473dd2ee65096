"""Machines that die, and runs that are resumed elsewhere: the results have the same bits."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from copd.branch import Branch
from copd.config import Config
from copd.engine import Engine, create_engine
from copd.run import commands
from copd.run.runner import Runner
from tests.engine.test_ray import end_state

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
LOCAL = {"type": "local", "num_threads": 1}
RAY = {"type": "ray", "num_cpus": 0}
OVERRIDES = {
    "local": ["--engine.type", "local", "--engine.num_threads", "1"],
    "ray": ["--engine.type", "ray", "--engine.num_cpus", "0"],
}


@contextmanager
def machines(*num_cpus: int) -> Iterator[str]:
    """Start a cluster of simulated machines and give its address."""
    cluster = pytest.importorskip("ray.cluster_utils").Cluster(shutdown_at_exit=False)
    try:
        for number in num_cpus:
            cluster.add_node(
                wait=False, num_cpus=number, object_store_memory=2**27, include_dashboard=False
            )
        cluster.wait_for_nodes(timeout=900)
        yield cluster.address
    finally:
        cluster.shutdown()


def make_config(root: Path, engine: dict[str, object]) -> Config:
    return Config.model_validate(
        {
            "output_dir": root,
            "seed": 3,
            "model": {"path": "tiny", "device": "cpu"},
            "domains": {
                m: {"type": "digits", "modality": m, "num_train": 50} for m in ("text", "image")
            },
            "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1},
            "rollout": {"num_prompts": 2, "group_size": 2, "max_completion_tokens": 6},
            "optimizer": {"learning_rate": 1e-3},
            "evaluation": {"num_problems": 3, "num_samples": 1, "base": False},
            "checkpoint": {"every": 1},
            "engine": engine,
        }
    )


class Stopped(Exception):
    """Stands for a machine that is switched off."""


class StoppingEngine:
    """An engine that stops at the second update."""

    def __init__(self, engine: Engine) -> None:
        self.spawn, self.drop = engine.spawn, engine.drop
        self.clear, self.close = engine.clear, engine.close
        self._call, self._num_updates = engine.call, 0
        self.is_parallel = engine.is_parallel

    def call(
        self, method: Callable[[Branch, Any], Any], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        self._num_updates += method is Branch.update
        if self._num_updates == 2:
            raise Stopped
        return self._call(method, inputs)


def test_a_run_is_resumed_on_another_engine(tmp_path):
    """From all branches in one process to one process each, and the other way round."""
    pytest.importorskip("ray")
    commands.train(make_config(tmp_path / "quiet", LOCAL))
    quiet = end_state(tmp_path / "quiet")
    for first, then in ((LOCAL, "ray"), (RAY, "local")):
        config = make_config(tmp_path / then, first)
        engine = StoppingEngine(create_engine(config))
        try:
            with pytest.raises(Stopped):
                Runner(config, engine, Console()).run()
        finally:
            engine.close()
        assert not (config.output_dir / "final").exists()
        commands.resume(config.output_dir, OVERRIDES[then])
        stored = json.loads((config.output_dir / "config.json").read_text())
        assert stored["engine"]["type"] == then
        assert end_state(config.output_dir) == quiet


def test_a_run_is_resumed_on_fewer_machines(tmp_path):
    """From two machines with a branch on each to one with both."""
    commands.train(make_config(tmp_path / "quiet", LOCAL))

    def machine_of(branch: Branch, _: None) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()

    with machines(1, 1) as address:
        config = make_config(tmp_path / "run", {**RAY, "num_cpus": 1, "address": address})
        inner = create_engine(config)
        engine = StoppingEngine(inner)
        try:
            with pytest.raises(Stopped):
                Runner(config, engine, Console()).run()
            assert len(set(inner.call(machine_of, {"text": None, "image": None}).values())) == 2
        finally:
            engine.close()
    with machines(3) as address:
        commands.resume(config.output_dir, ["--engine.address", address])
    assert end_state(config.output_dir) == end_state(tmp_path / "quiet")


def test_processes_and_machines_may_die(tmp_path):
    """Three branches on two simulated machines; one of them dies, and later a process."""
    pytest.importorskip("ray")
    out = tmp_path / "kills"
    options = ["--nodes", "2", "--kills", "2", "--rounds", "1", "--seed", "6", "--out", str(out)]
    command = [sys.executable, "-m", "scripts.kills", *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    record = json.loads((out / "kills.json").read_text())
    assert {death["kill"]["kind"] for death in record["deaths"]} == {"process", "machine"}
    assert record["different"] == [] and record["files"] > 20
    assert run.stdout.count("Beginning again") >= 2 and len(record["losses"]) >= 2

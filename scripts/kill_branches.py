"""Kills branches, and the machines they live on, under a run; compares its end with a quiet run's.

Machines are simulated: raylets on this one, of Ray's own cluster for tests. Not in the package.

    python scripts/kill_branches.py --nodes 4 --kills 10 --seed 0 --out runs/kills

Exit code 0: as many kills as asked for have happened, and the two ends are the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # branches bring their own

import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from copd.branch import Branch
from copd.config import Config, RayEngineConfig
from copd.engine.ray import RayEngine, join
from copd.run import commands
from copd.run.runner import Runner

Kind = Literal["process", "machine", "raylet"]
"""What is killed: the branch's process; its machine's raylet with all processes there; or that
raylet alone, which its branches may outlive for some seconds."""

KINDS: tuple[Kind, ...] = ("process", "machine", "raylet")
DOMAINS = ("text", "image", "video")
STORE_BYTES = 2**27
CALLS_TO_CHECKPOINT = 26
"""Calls of `each` before a run with three branches has something to go on from."""


@dataclass(frozen=True)
class Kill:
    """One death, drawn before the run begins."""

    call: int
    """Number of the call of `each` that it hits, counted over all that the run does again."""
    share: float
    """Which of the branches asked there: its place among them, from 0 to 1."""
    kind: Kind
    delay: float
    """Seconds after the branch was asked."""


def draw(seed: int, count: int) -> list[Kill]:
    """As many of every kind as can be; there are some calls between one and the next.

    The first hits the start of the run, the second comes once there is a checkpoint, so that no
    four in a row hit a run that gets no further: after those it would rightly give up.
    """
    dice = random.Random(seed)
    kinds: list[Kind] = [KINDS[index % len(KINDS)] for index in range(count)]
    dice.shuffle(kinds)
    gaps = [dice.randint(1, 20), CALLS_TO_CHECKPOINT + dice.randint(0, 6)]
    gaps += [dice.randint(5, 10) for _ in range(count)]
    calls = [sum(gaps[: index + 1]) for index in range(count)]
    return [
        Kill(call, dice.random(), kind, round(dice.uniform(0.0, 1.0), 3))
        for call, kind in zip(calls, kinds, strict=True)
    ]


class Hunted(RayEngine):
    """Branches on a cluster whose machines and processes die at drawn moments."""

    def __init__(
        self, config: Config, settings: RayEngineConfig, cluster: Cluster, kills: Sequence[Kill]
    ) -> None:
        super().__init__(config, settings)
        self._cluster, self._num_nodes = cluster, num_machines()
        self._due = list(kills)
        self._num_calls = 0
        self._marks = config.output_dir.parent / "marks"
        self._marks.mkdir()
        self.sent: list[dict[str, object]] = []

    def each(self, verb: Callable[[Branch, Any], Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        self._num_calls += bool(inputs)
        if inputs and self._due and self._num_calls >= self._due[0].call:
            kill = self._due.pop(0)
            victim = list(inputs)[int(kill.share * len(inputs))]
            mark = self._marks / str(len(self.sent))
            self.sent.append({**asdict(kill), "verb": verb.__name__, "branch": victim})
            verb = deadly(verb, victim, kill, mark)
        return super().each(verb, inputs)

    def clear(self) -> None:
        """Dead machines are replaced, as whoever runs a cluster would do."""
        for node in list(self._cluster.worker_nodes):
            if node.dead_processes():
                self._cluster.remove_node(node, allow_graceful=False)
        for _ in range(self._num_nodes - num_machines()):
            add_machine(self._cluster)
        super().clear()

    def happened(self) -> list[dict[str, object]]:
        """The kills that were carried out: a victim may have died of an earlier one."""
        return [kill for n, kill in enumerate(self.sent) if (self._marks / str(n)).exists()]


def deadly(
    verb: Callable[[Branch, Any], Any], victim: str, kill: Kill, mark: Path
) -> Callable[[Branch, Any], Any]:
    """The verb, but the victim's process or machine does not live long after being asked."""

    def wrapped(branch: Branch, value: Any) -> Any:
        if branch.name == victim:
            threading.Timer(kill.delay, destroy, [kill.kind, mark]).start()
        return verb(branch, value)

    wrapped.__name__ = verb.__name__
    return wrapped


def destroy(kind: Kind, mark: Path) -> None:
    """Ends this process, or the raylet that has started it, or both with all there is beside it."""
    own, raylet = os.getpid(), os.getppid()
    assert status_of(raylet)[0] == "raylet", "a worker's parent is its raylet"
    beside = [pid for pid in children(raylet) if pid != own]
    mark.touch()
    victims = {"process": [own], "raylet": [raylet], "machine": [raylet, *beside, own]}
    for pid in victims[kind]:
        os.kill(pid, signal.SIGKILL)


def children(parent: int) -> list[int]:
    """The processes that another has started."""
    everybody = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in everybody if status_of(pid)[2] == parent]


def status_of(pid: int) -> tuple[str, bool, int]:
    """A process's name, whether it lives, and its parent."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended meanwhile
        return "", False, 0
    name, _, rest = line.partition("(")[2].rpartition(")")
    state, parent, *_ = rest.split()
    return name, state not in "ZX", int(parent)


def add_machine(cluster: Cluster) -> None:
    """Ray gives a raylet 30 s to start; on a busy machine it comes later, and nothing is lost."""
    try:
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    except Exception as error:  # Ray raises no narrower one
        print(f"a simulated machine takes its time: {error}")


def num_machines() -> int:
    """Raylets that this process has started and that live, but for the head's."""
    return sum(status_of(pid)[:2] == ("raylet", True) for pid in children(os.getpid())) - 1


def make_config(root: Path, rounds: int, engine: Mapping[str, object]) -> Config:
    """Three branches, all learning from all, with everything a run can leave behind."""
    return Config.model_validate(
        {
            "output_dir": root,
            "seed": 3,
            "model": {"path": "tiny", "device": "cpu"},
            "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in DOMAINS},
            "recipe": {"type": "copd", "rounds": rounds, "rlvr_steps": 1, "opd_steps": 2},
            "rollout": {"num_prompts": 2, "group_size": 2, "max_completion_tokens": 8},
            "optimizer": {"learning_rate": 1e-3},
            "evaluation": {"num_problems": 3, "num_samples": 1},
            "checkpoint": {"every": 1, "keep": 99},
            "engine": engine,
        }
    )


def hunted_run(
    root: Path, rounds: int, num_nodes: int, kills: Sequence[Kill]
) -> list[dict[str, object]]:
    """The run on simulated machines; returns the kills it has survived."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
        },
    )
    config = make_config(root, rounds, {"type": "ray", "address": cluster.address})
    assert isinstance(config.engine, RayEngineConfig)
    join(config.engine)  # while there is only the head, which is not killed
    for _ in range(num_nodes):
        add_machine(cluster)
    engine = Hunted(config, config.engine, cluster, kills)
    try:
        Runner(config, engine, Console(width=160)).run()
        return engine.happened()
    finally:
        engine.close()
        ray.shutdown()
        cluster.shutdown()


def end_state(root: Path) -> dict[str, bytes]:
    """Everything about a run that must not depend on where it was and who died."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    other = {"config.json", "timings.jsonl"}
    return {str(p.relative_to(root)): p.read_bytes() for p in files if p.name not in other}


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=4, help="simulated machines beside the head")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="of one RLVR and two mutual steps")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, required=True, help="folder that is not there yet")
    given = parser.parse_args(words)
    out = given.out.resolve()
    out.mkdir(parents=True)
    commands.train(make_config(out / "quiet", given.rounds, {"type": "local", "num_threads": 1}))
    started = time.monotonic()
    kills = hunted_run(out / "hunted", given.rounds, given.nodes, draw(given.seed, given.kills))
    quiet, hunted = end_state(out / "quiet"), end_state(out / "hunted")
    different = sorted(name for name in quiet | hunted if quiet.get(name) != hunted.get(name))
    record = {
        "seed": given.seed,
        "nodes": given.nodes,
        "rounds": given.rounds,
        "kills": kills,
        "seconds": round(time.monotonic() - started),
        "files": len(quiet),
        "different": different,
    }
    (out / "kills.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for kill in kills:
        print(f"{kill['kind']} of {kill['branch']} in {kill['verb']}, after {kill['delay']} s")
    print(f"{len(kills)} of {given.kills} kills; different files: {different or 'none'}")
    return int(bool(different) or len(kills) != given.kills)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Kill branches and their machines during a run, and compare its end with that of a quiet run.

Machines are simulated: raylets on this computer, by Ray's cluster for tests.

    python -m scripts.kills --nodes 4 --kills 10 --seed 0 --out runs/kills

The exit code is 0 if all kills have happened and both ends are equal to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # branches start their own

import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from copd.config import Config, RayEngineConfig
from copd.engine.ray import join
from copd.run import commands
from copd.run.runner import Runner
from scripts.kills.faults import STORE_BYTES, Death, FaultyEngine, add_machine
from scripts.kills.schedule import Kill, draw

DOMAINS = ("text", "image", "video")
STEPS_PER_ROUND = 3
TIME_LIMIT = 60.0
"""Seconds until a branch that has stopped counts as lost."""


def make_config(root: Path, rounds: int, engine: Mapping[str, object]) -> Config:
    """Return a run of three mutual branches that writes everything a run can write."""
    return Config.model_validate(
        {
            "output_dir": root,
            "seed": 3,
            "model": {"path": "tiny", "device": "cpu"},
            "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in DOMAINS},
            "recipe": {"type": "copd", "rounds": rounds, "rlvr_steps": 1, "opd_steps": 2},
            "rollout": {"num_prompts": 2, "group_size": 2, "max_completion_tokens": 8},
            "optimizer": {"learning_rate": 1e-3},
            "evaluation": {"num_problems": 3, "num_samples": 1, "every": 1},
            "checkpoint": {"every": 1, "keep": 99},
            "engine": engine,
        }
    )


def faulty_run(
    root: Path, rounds: int, num_nodes: int, kills: Sequence[Kill]
) -> tuple[list[Death], list[str]]:
    """Run on simulated machines; return the deaths that the run survived, and its losses."""
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    # shutting down at exit would need the main thread
    cluster = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args=head)
    engine_config = {"type": "ray", "address": cluster.address, "time_limit": TIME_LIMIT}
    config = make_config(root, rounds, engine_config)
    assert isinstance(config.engine, RayEngineConfig)
    join(config.engine)  # while there is only the head, which is not killed
    for _ in range(num_nodes):
        add_machine(cluster)
    engine = FaultyEngine(config, config.engine, cluster, kills)
    try:
        Runner(config, engine, Console(width=160)).run()
        return engine.deaths, engine.losses
    finally:
        engine.close()
        ray.shutdown()
        cluster.shutdown()


def end_state(root: Path) -> dict[str, bytes]:
    """Return all files of a run that must depend neither on the machine nor on kills."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    other = {"config.json", "timings.jsonl"}
    return {str(p.relative_to(root)): p.read_bytes() for p in files if p.name not in other}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.kills", description=__doc__)
    parser.add_argument("--nodes", type=int, default=4, help="simulated machines beside the head")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=8, help="of one RLVR and two mutual steps")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args(argv)
    rounds, out = arguments.rounds, arguments.out.resolve()
    out.mkdir(parents=True)
    commands.train(make_config(out / "quiet", rounds, {"type": "local", "num_threads": 1}))
    started = time.monotonic()
    kills = draw(arguments.seed, arguments.kills, rounds * STEPS_PER_ROUND)
    deaths, losses = faulty_run(out / "hunted", rounds, arguments.nodes, kills)
    quiet, faulty = end_state(out / "quiet"), end_state(out / "hunted")
    different = sorted(name for name in quiet | faulty if quiet.get(name) != faulty.get(name))
    record = {
        "seed": arguments.seed,
        "nodes": arguments.nodes,
        "rounds": rounds,
        "deaths": [asdict(death) for death in deaths],
        "losses": losses,
        "seconds": round(time.monotonic() - started),
        "files": len(quiet),
        "different": different,
    }
    (out / "kills.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for death in deaths:
        kill = death.kill
        where = f"{kill.kind} of {death.branch}, {kill.stage} of step {kill.step}"
        times = f"noticed after {death.noticed} s, back after {death.back} s"
        print(f"{where}, during {', '.join(death.during) or 'nothing'}: {times}")
    print(f"{len(deaths)} of {arguments.kills} kills; different files: {different or 'none'}")
    return int(bool(different) or len(deaths) != arguments.kills)


if __name__ == "__main__":
    sys.exit(main())

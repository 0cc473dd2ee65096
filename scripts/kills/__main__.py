"""Kills branches, and the machines they live on, under a run; compares its end with a quiet run's.

Machines are simulated: raylets on this one, of Ray's own cluster for tests. Not in the package.

    python -m scripts.kills --nodes 4 --kills 10 --seed 0 --out runs/kills

Exit code 0: as many kills as asked for have happened, and the two ends are the same to the bit.
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

os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # branches bring their own

import ray
from ray.cluster_utils import Cluster
from rich.console import Console

from copd.config import Config, RayEngineConfig
from copd.engine.ray import join
from copd.run import commands
from copd.run.runner import Runner
from scripts.kills.drawn import Kill, draw
from scripts.kills.hunted import STORE_BYTES, Death, Hunted, add_machine

DOMAINS = ("text", "image", "video")
STEPS_PER_ROUND = 3
TIME_LIMIT = 60.0
"""Seconds until a branch that has stopped counts as lost."""


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
            "evaluation": {"num_problems": 3, "num_samples": 1, "every": 1},
            "checkpoint": {"every": 1, "keep": 99},
            "engine": engine,
        }
    )


def hunted_run(
    root: Path, rounds: int, num_nodes: int, kills: Sequence[Kill]
) -> tuple[list[Death], list[str]]:
    """The run on simulated machines; returns deaths that it has survived, and what was lost."""
    cluster = Cluster(
        initialize_head=True,
        shutdown_at_exit=False,  # what it needs for that cannot be had outside the main thread
        head_node_args={
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
        },
    )
    where = {"type": "ray", "address": cluster.address, "time_limit": TIME_LIMIT}
    config = make_config(root, rounds, where)
    assert isinstance(config.engine, RayEngineConfig)
    join(config.engine)  # while there is only the head, which is not killed
    for _ in range(num_nodes):
        add_machine(cluster)
    engine = Hunted(config, config.engine, cluster, kills)
    try:
        Runner(config, engine, Console(width=160)).run()
        return engine.deaths, engine.losses
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
    parser.add_argument("--rounds", type=int, default=8, help="of one RLVR and two mutual steps")
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--out", type=Path, required=True, help="folder that is not there yet")
    given = parser.parse_args(words)
    out = given.out.resolve()
    out.mkdir(parents=True)
    commands.train(make_config(out / "quiet", given.rounds, {"type": "local", "num_threads": 1}))
    started = time.monotonic()
    kills = draw(given.seed, given.kills, given.rounds * STEPS_PER_ROUND)
    deaths, losses = hunted_run(out / "hunted", given.rounds, given.nodes, kills)
    quiet, hunted = end_state(out / "quiet"), end_state(out / "hunted")
    different = sorted(name for name in quiet | hunted if quiet.get(name) != hunted.get(name))
    record = {
        "seed": given.seed,
        "nodes": given.nodes,
        "rounds": given.rounds,
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
        print(f"{where}, while {', '.join(death.during) or 'nothing'}: {times}")
    print(f"{len(deaths)} of {given.kills} kills; different files: {different or 'none'}")
    return int(bool(different) or len(deaths) != given.kills)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

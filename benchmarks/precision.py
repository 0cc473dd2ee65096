"""What bfloat16 does to learning: the demo in both precisions, side by side: docs/precision.md.

Runs `copd train` in processes of its own, one thread each, two at a time; computes means only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cpu import processor
from copd.monitor.results import from_json

PRECISIONS = ("float32", "bfloat16")
Run = Mapping[str, Any]


def train(config: Path, folder: Path, overrides: Sequence[str]) -> None:
    """One run to its end; one that is there already is resumed, which costs nothing if it ended."""
    started = (folder / "config.json").exists()
    words = ["resume", str(folder)] if started else ["train", str(config), *overrides]
    command = [sys.executable, "-m", "copd", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder.with_suffix(".log")).open("w", encoding="utf-8") as log:
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)


def read_run(folder: Path) -> Run:
    """What the page needs of a finished run."""
    lines, timings = (
        [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        for name in ("metrics.jsonl", "timings.jsonl")
    )
    results = from_json(json.loads((folder / "eval.json").read_text(encoding="utf-8")))
    return {
        "reward": [_mean_of(line, "rlvr/", "/reward") for line in lines],
        "gap": [_mean_of(line, "rlvr/", "/train_inference_mismatch") for line in lines],
        "seconds": sum(timing["seconds"] for timing in timings),
        "accuracy": {
            model: statistics.mean(statistics.mean(d.accuracy) for d in domains.values())
            for model, domains in results.items()
        },
    }


def _mean_of(line: Mapping[str, Any], start: str, end: str) -> float:
    """Over branches, of a native batch's metric."""
    return statistics.mean(
        value
        for metrics in line["branches"].values()
        for key, value in metrics.items()
        if key.startswith(start) and key.endswith(end)
    )


def page(runs: Mapping[str, Sequence[Run]], seeds: Sequence[int], heading: str) -> str:
    """Mean reward of native batches by tenths of the run, and what came out."""
    num_steps = len(runs[PRECISIONS[0]][0]["reward"])
    header = ["steps", *(f"{p}, seed {s}" for p in PRECISIONS for s in seeds)]
    rows = [header, ["---"] * len(header)]
    for part in range(10):
        first, last = part * num_steps // 10, (part + 1) * num_steps // 10
        means = [statistics.mean(run["reward"][first:last]) for p in PRECISIONS for run in runs[p]]
        rows.append([f"{first + 1} to {last}", *(f"{mean:.3f}" for mean in means)])
    ends = [run for p in PRECISIONS for run in runs[p]]
    for model in ends[0]["accuracy"]:
        cells = (f"{100 * run['accuracy'][model]:.1f} %" for run in ends)
        rows.append([f"held-out accuracy, {model}", *cells])
    gaps = (f"{statistics.median(run['gap']):.1e}" for run in ends)
    rows.append(["median sampler gap, nats", *gaps])
    rows.append(["seconds in steps", *(f"{run['seconds']:.0f}" for run in ends)])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{heading}\n\n{table}\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("configs/laptop.toml"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"))
    parser.add_argument("--out", type=Path, default=Path("docs/precision.md"))
    given = parser.parse_args()
    given.runs.mkdir(parents=True, exist_ok=True)
    folders = {p: [given.runs / f"{p}-{seed}" for seed in given.seeds] for p in PRECISIONS}
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(
                train,
                given.config,
                folder,
                [f"--model.dtype={p}", f"--seed={seed}", f"--output_dir={folder}"],
            )
            for seed, *pair in zip(given.seeds, *folders.values(), strict=True)
            for p, folder in zip(PRECISIONS, pair, strict=True)
        ]
        for job in jobs:
            job.result()
    runs = {p: [read_run(folder) for folder in own] for p, own in folders.items()}
    heading = (
        "# Precision and learning\n\n"
        f"Written by `python -m benchmarks.precision`. {time.strftime('%Y-%m-%d')}, {processor()}, "
        f"torch {version('torch')}, transformers {version('transformers')}.\n\n"
        f"`{given.config}` with `model.dtype` float32 and bfloat16 (autocast; weights, optimizer, "
        "losses float32), the same seeds. Two runs at a time, one thread each. Reward: mean of the "
        "branches' native batches. Accuracy: mean over domains on held-out problems."
    )
    given.out.write_text(page(runs, given.seeds, heading), encoding="utf-8")
    print(given.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

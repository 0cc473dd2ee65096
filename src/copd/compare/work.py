"""Does one job of a study in a process of its own: `python -m copd.compare.work STUDY METHOD SEED`.

Its standard input is a pipe that the scheduler holds: when that ends, for whatever reason, so does
the job. Nothing is lost, as files are complete or not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from rich.console import Console

from copd.branch import Branch
from copd.compare.begin import begin_after
from copd.compare.jobs import STUDY_FILE, Job, merge_config, merge_model, study_jobs
from copd.compare.progress import is_done, merge_file, missing_models
from copd.config import BASE
from copd.config.study import Study
from copd.engine import create_engine
from copd.recipes import build_plan
from copd.run.checkpoint import latest_checkpoint
from copd.run.directory import write_atomically
from copd.run.evaluation import evaluate, to_json
from copd.run.merge import merge_branches
from copd.run.runner import Runner

LOCK = ".lock"
"""Held by the process that works in a folder, and its number."""


def main(argv: Sequence[str]) -> int:
    """0 when the job is done, 1 for a mistake of the user, as one sentence."""
    root, method, seed = Path(argv[0]), argv[1], int(argv[2])
    Thread(target=_end_with_scheduler, daemon=True).start()
    study = Study.model_validate_json((root / STUDY_FILE).read_text(encoding="utf-8"))
    jobs = study_jobs(study, root)
    [job] = (job for job in jobs if (job.method, job.seed) == (method, seed))
    with _alone(job.root):
        try:
            work(job, jobs)
        except (ValueError, FloatingPointError, FileNotFoundError) as error:
            print(f"error: {error}", flush=True)
            return 1
    return 0


def work(job: Job, jobs: Sequence[Job]) -> None:
    """Trains and measures, from wherever an earlier attempt left it."""
    console = Console()
    if job.method == BASE:
        _measure_base(job)
        return
    if job.start:
        leader = next(j for j in jobs if (j.method, j.seed) == (job.start.method, job.seed))
        begin_after(job.config, leader.root, job.start.step, console)
    engine = create_engine(job.config)
    try:
        runner = Runner(job.config, engine, console)
        runner.run() if job.is_measured else runner.train()
    finally:
        engine.close()
    _require_tokens(job)
    for name in job.merges:
        if merge_model(name) in missing_models(job):
            _measure_merge(job, name)
    assert is_done(job), f"{job.name} has no results for {missing_models(job)}"


def _measure_base(job: Job) -> None:
    engine = create_engine(job.config)
    try:
        engine.spawn(BASE, job.config.model.path)
        results = evaluate(engine, job.config, [BASE])
    finally:
        engine.close()
    write_atomically(job.root / "config.json", job.config.model_dump_json(indent=2))
    write_atomically(job.root / "eval.json", json.dumps(to_json(results)))


def _measure_merge(job: Job, name: str) -> None:
    """Merges the branches as they were after the last step, and measures the result."""
    merge = build_plan(merge_config(job.config, job.method, job.merges[name])).merge
    checkpoint = latest_checkpoint(job.root / "checkpoints")
    assert merge and checkpoint, "merges are checked with the study, and made after training"
    engine = create_engine(job.config)
    try:
        for branch in merge.branches:
            engine.spawn(branch, job.config.model.path)
        engine.each(Branch.restore, dict.fromkeys(merge.branches, checkpoint.folder))
        shares = merge_branches(engine, job.config, merge)
        results = evaluate(engine, job.config, [merge.into])
    finally:
        engine.close()
    record = {
        "settings": job.merges[name].model_dump(mode="json"),
        "shares": shares,
        "results": to_json(results)[merge.into],
    }
    merge_file(job, name).parent.mkdir(exist_ok=True)
    write_atomically(merge_file(job, name), json.dumps(record))


def _require_tokens(job: Job) -> None:
    """A plan that ends before the budget of tokens makes the comparison unequal."""
    limit = job.config.max_tokens
    checkpoint = latest_checkpoint(job.root / "checkpoints")
    assert checkpoint, "a trained run has a checkpoint"
    spent = sum(cost["sampled_tokens"] for cost in checkpoint.cost.values())
    if limit is not None and spent < limit:
        raise ValueError(
            f"{job.name} ended before its budget: got {spent:,} tokens, expected {limit:,}. Give "
            f"its recipe more steps, delete {job.root}, and run the study again."
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process per folder: waits for one that is still ending."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _end_with_scheduler() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

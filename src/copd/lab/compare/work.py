"""Does one job of a study: trains, or begins where others trained, and measures what is wanted.

Knows nothing of processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from copd.branch import Branch
from copd.config import BASE
from copd.engine import create_engine
from copd.lab.compare.begin import begin_after
from copd.lab.compare.jobs import Job, merge_config, merge_model
from copd.lab.compare.progress import is_done, merge_file, missing_models
from copd.monitor.results import Results, to_json
from copd.recipes import build_plan
from copd.run.checkpoint import latest_checkpoint
from copd.run.evaluation import evaluate
from copd.run.merge import merge_branches
from copd.run.preflight import check_samplers
from copd.run.runner import Runner
from copd.storage import write_atomically


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
        Runner(job.config, engine, console).run(measure=job.is_measured)
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
        check_samplers(engine, job.config, [BASE])
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
        engine.call(Branch.restore, dict.fromkeys(merge.branches, checkpoint.folder))
        check_samplers(engine, job.config, merge.branches)

        def validate(model: str) -> Results:
            return evaluate(engine, job.config, [model], split="validation")[model]

        shares = merge_branches(engine, job.config.model, merge, validate)
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

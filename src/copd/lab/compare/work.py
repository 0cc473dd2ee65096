"""Run one job of a study: train it, or begin with shared experts, and evaluate its columns."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from copd.branch import Branch
from copd.config import BASE, Config
from copd.domains import with_sizes
from copd.engine import create_engine
from copd.lab.compare.jobs import Job, find_job, merge_config, merge_model
from copd.lab.compare.progress import LogLine, is_done, merge_file, missing_models, token_shares
from copd.monitor.results import Results, to_json
from copd.recipes import Plan, build_plan
from copd.run.checkpoint import Checkpoint, adopt_checkpoint, checkpoint_at, latest_checkpoint
from copd.run.cost import no_cost
from copd.run.evaluation import evaluate_branches
from copd.run.merge import merge_branches
from copd.run.preflight import check_samplers, check_teachers
from copd.run.runner import Runner
from copd.storage import read_lines, write_atomically


def run_job(job: Job, jobs: Sequence[Job]) -> None:
    """Train and evaluate a job of `jobs`, from wherever an earlier attempt ended."""
    job = replace(job, config=with_sizes(job.config, lambda _: None))
    if job.method == BASE:
        _evaluate_base(job)
        return
    console = Console()
    if job.start:
        leader = find_job(jobs, job.start.method, job.seed)
        begin_after(job.config, leader.root, job.start.step, console)
    with closing(create_engine(job.config)) as engine:
        Runner(job.config, engine, console).run(measure=job.is_measured)
    _check_tokens(job)
    for name in job.merges:
        if merge_model(name) in missing_models(job):
            _evaluate_merge(job, name)
    assert is_done(job), f"{job.name} has no results for {missing_models(job)}"


def begin_after(config: Config, leader: Path, step: int, console: Console) -> None:
    """Copy the branches and log lines up to `step` from the run in the folder `leader`.

    Does nothing if the run has a checkpoint, or if the leader has none at that step: then the run
    trains its experts itself, with the same result to the last bit.
    """
    root = config.output_dir
    source = checkpoint_at(leader / "checkpoints", step)
    if source is None or latest_checkpoint(root / "checkpoints"):
        return
    plan = build_plan(config)
    _check_budget(config, plan.stages[0].trained, source)
    console.print(f"beginning after step {step} of {leader}, which trains the same experts")
    root.mkdir(parents=True, exist_ok=True)
    for name, lines in _first_lines(plan, leader, step).items():
        write_atomically(root / name, "".join(json.dumps(line) + "\n" for line in lines))
    with closing(create_engine(config)) as engine:
        Runner(config, engine, Console(quiet=True)).prepare()
        check_teachers(engine, config, plan)  # possible only before the first step
        adopt_checkpoint(root / "checkpoints", source, engine, plan.branches)


def _evaluate_base(job: Job) -> None:
    with closing(create_engine(job.config)) as engine:
        engine.spawn(BASE, job.config.model.path)
        check_samplers(engine, job.config, [BASE])
        results = evaluate_branches(engine, job.config, [BASE])
    write_atomically(job.root / "config.json", job.config.model_dump_json(indent=2))
    write_atomically(job.root / "eval.json", json.dumps(to_json(results)))


def _evaluate_merge(job: Job, name: str) -> None:
    """Merge the branches of the last checkpoint and evaluate the result."""
    merge = build_plan(merge_config(job.config, job.method, job.merges[name])).merge
    checkpoint = latest_checkpoint(job.root / "checkpoints")
    assert merge and checkpoint, "merges are checked with the study, and made after training"
    with closing(create_engine(job.config)) as engine:
        for branch in merge.branches:
            engine.spawn(branch, job.config.model.path)
        engine.call(Branch.restore, dict.fromkeys(merge.branches, checkpoint.folder))
        check_samplers(engine, job.config, merge.branches)

        def validate(model: str) -> Results:
            return evaluate_branches(engine, job.config, [model], split="validation")[model]

        shares = merge_branches(engine, job.config.model, merge, validate)
        results = evaluate_branches(engine, job.config, [merge.into])
    record = {
        "settings": job.merges[name].model_dump(mode="json"),
        "shares": shares,
        "results": to_json(results)[merge.into],
    }
    merge_file(job, name).parent.mkdir(exist_ok=True)
    write_atomically(merge_file(job, name), json.dumps(record))


def _check_tokens(job: Job) -> None:
    """Refuse a plan that ends before the budget of tokens: methods would have unequal budgets."""
    limit = job.config.max_tokens
    checkpoint = latest_checkpoint(job.root / "checkpoints")
    assert checkpoint, "a trained run has a checkpoint"
    spent = sum(cost["sampled_tokens"] for cost in checkpoint.cost.values())
    if limit is not None and spent < limit:
        raise ValueError(
            f"{job.name} ended before its budget: got {spent:,} tokens, expected {limit:,}. Give "
            f"its recipe more steps, delete {job.root}, and run the study again."
        )


def _check_budget(config: Config, experts: tuple[str, ...], source: Checkpoint) -> None:
    spent = sum(source.cost[branch]["sampled_tokens"] for branch in experts)
    if config.max_tokens is not None and spent >= config.max_tokens:
        raise ValueError(
            f"the experts alone must stay below the budget of tokens: got {spent:,} after step "
            f"{source.step}, expected less than {config.max_tokens:,}. Lower recipe.expert_steps."
        )


def _first_lines(plan: Plan, leader: Path, step: int) -> dict[str, list[LogLine]]:
    """Return the log lines of the first steps as this run would have written them."""
    experts = plan.stages[0].trained

    def first(name: str) -> list[dict[str, Any]]:
        return [line for line in read_lines(leader / name) if line["step"] <= step]

    metrics = first("metrics.jsonl")
    timed = zip(first("timings.jsonl"), token_shares(metrics, experts), strict=True)
    return {
        "metrics.jsonl": [
            {
                **line,
                "branches": {name: line["branches"][name] for name in experts},
                "cost": no_cost(plan.branches) | {name: line["cost"][name] for name in experts},
            }
            for line in metrics
        ],
        "rollouts.jsonl": [line for line in first("rollouts.jsonl") if line["branch"] in experts],
        "timings.jsonl": [
            {**line, "seconds": round(line["seconds"] * share, 4)} for line, share in timed
        ],
    }

"""Collect the results of a study from the folders of its finished jobs."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from copd.config import BASE
from copd.config.study import Study
from copd.lab.compare.jobs import Job, expert_columns, merge_model
from copd.lab.compare.progress import LogLine, merge_file, missing_models, read_json, token_shares
from copd.lab.study.results import Outcome, StudyResults
from copd.monitor.results import from_json
from copd.run.cost import COUNTS
from copd.storage import read_lines


def collect(study: Study, jobs: Sequence[Job]) -> StudyResults:
    """Return everything that is evaluated so far, and the names of the jobs that are not done."""
    measured = [job for job in jobs if job.is_measured]
    ordered = sorted(measured, key=lambda job: [BASE, *study.methods].index(job.method))
    return StudyResults(
        title=study.title,
        equal=study.equal,
        experts=expert_columns(study, jobs),
        outcomes=tuple(outcome for job in ordered for outcome in _outcomes(job)),
        missing=tuple(job.name for job in ordered if missing_models(job)),
        settings=_settings(study, jobs),
    )


def _outcomes(job: Job) -> list[Outcome]:
    """Return one outcome per evaluated model."""
    data = read_json(job.root / "eval.json")
    for name in job.merges:
        if record := read_json(merge_file(job, name)):
            data[merge_model(name)] = record["results"]
    results = from_json(data)
    metrics = list(read_lines(job.root / "metrics.jsonl")) if results else []
    seconds = [line["seconds"] for line in read_lines(job.root / "timings.jsonl")]
    return [
        Outcome(column, job.method, job.seed, results[model], *_spent(job, model, metrics, seconds))
        for model, column in job.columns.items()
        if model in results
    ]


def _spent(
    job: Job, model: str, metrics: Sequence[LogLine], seconds: Sequence[float]
) -> tuple[dict[str, int], float]:
    """Return counts and seconds of the whole run, or of the branch where it is a result itself."""
    if job.method == BASE:
        return dict.fromkeys(COUNTS, 0), 0.0
    costs = metrics[-1]["cost"]
    if job.plan.final is not None or model not in costs:
        return {key: sum(cost[key] for cost in costs.values()) for key in COUNTS}, sum(seconds)
    shares = zip(seconds, token_shares(metrics, (model,)), strict=True)
    return {key: costs[model][key] for key in COUNTS}, sum(s * share for s, share in shares)


def _settings(study: Study, jobs: Sequence[Job]) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat the numbers."""
    first = {job.method: job for job in reversed(jobs)}.values()
    packages = ("copd", "torch", "transformers", "numpy")
    return {
        "study": study.model_dump(mode="json"),
        "own_budget": [column for job in first for column in _own_budget(study, job)],
        "shared_experts": {
            job.method: f"begins after step {job.start.step} of {job.start.method}"
            for job in first
            if job.start
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "collected": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _own_budget(study: Study, job: Job) -> list[str]:
    """Return the columns of a job that are not at the equal budget; a single expert is not."""
    if job.method not in study.methods:
        return []
    if study.methods[job.method].budget == "own":
        return [*job.columns.values()]
    alone = job.plan.branches if job.plan.final is None else ()
    return [column for model, column in job.columns.items() if model in alone]

"""From the folders of finished jobs to the results of a study. Knows no statistics."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from copd.config import BASE
from copd.config.study import Study
from copd.lab.compare.begin import token_shares
from copd.lab.compare.jobs import Job, expert_columns, merge_model
from copd.lab.compare.progress import merge_file, missing_models
from copd.lab.study.results import Outcome, StudyResults
from copd.monitor.results import Results, from_json
from copd.run.cost import COUNTS
from copd.storage import read_lines


def collect(study: Study, jobs: Sequence[Job]) -> StudyResults:
    """Everything that is measured so far, and the names of the jobs that are not finished."""
    measured = [job for job in jobs if job.is_measured]
    ordered = sorted(measured, key=lambda job: [BASE, *study.methods].index(job.method))
    return StudyResults(
        title=study.title,
        equal=study.equal,
        experts=expert_columns(study, tuple(jobs)),
        outcomes=tuple(outcome for job in ordered for outcome in _outcomes(job)),
        missing=tuple(job.name for job in ordered if missing_models(job)),
        settings=_settings(study, jobs),
    )


def _outcomes(job: Job) -> list[Outcome]:
    """One per measured model; the base once, whatever the seeds."""
    results = _results(job)
    if job.method == BASE:
        nothing: dict[str, int] = dict.fromkeys(COUNTS, 0)
        found = results.get(BASE)
        return [Outcome(BASE, BASE, job.seed, found, nothing, 0.0)] if found else []
    metrics = list(read_lines(job.root / "metrics.jsonl")) if results else []
    seconds = [line["seconds"] for line in read_lines(job.root / "timings.jsonl")]
    outcomes = []
    for model, column in job.columns.items():
        if model in results:
            spent = _spent(job, model, metrics, seconds)
            outcomes.append(Outcome(column, job.method, job.seed, results[model], *spent))
    return outcomes


def _results(job: Job) -> dict[str, Results]:
    """Model to its results, further merges included."""
    path = job.root / "eval.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in job.merges:
        if (merge := merge_file(job, name)).exists():
            found[merge_model(name)] = json.loads(merge.read_text(encoding="utf-8"))["results"]
    return {**from_json(found)}


def _spent(
    job: Job, model: str, metrics: Sequence[dict[str, Any]], seconds: Sequence[float]
) -> tuple[dict[str, int], float]:
    """What a model cost: the whole run, but of experts that are results each its own part."""
    costs = metrics[-1]["cost"]
    alone = job.plan.final is None and model in costs
    total = {key: sum(costs[b][key] for b in ([model] if alone else costs)) for key in COUNTS}
    if not alone:
        return total, sum(seconds)
    shares = token_shares(metrics, (model,))
    return total, sum(s * share for s, share in zip(seconds, shares, strict=True))


def _own_budget(study: Study, job: Job) -> list[str]:
    """The columns of a job that are not at the equal budget: an expert alone is not."""
    if job.method not in study.methods:
        return []
    if study.methods[job.method].budget == "own":
        return [*job.columns.values()]
    alone = job.plan.branches if job.plan.final is None else ()
    return [column for model, column in job.columns.items() if model in alone]


def _settings(study: Study, jobs: Sequence[Job]) -> dict[str, Any]:
    """What a reader needs to judge or repeat the numbers."""
    first = {job.method: job for job in reversed(jobs)}
    return {
        "study": study.model_dump(mode="json"),
        "own_budget": [c for job in first.values() for c in _own_budget(study, job)],
        "shared_experts": {
            job.method: f"begins after step {job.start.step} of {job.start.method}"
            for job in first.values()
            if job.start
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("copd", "torch", "transformers", "numpy")},
        },
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "collected": datetime.now(UTC).isoformat(timespec="seconds"),
    }

"""How far jobs are, read from the files they write. Knows no torch and starts nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from copd.config import BASE, Config
from copd.lab.compare.fairness import measurement
from copd.lab.compare.jobs import Job, merge_model

_FREE = {
    "output_dir": True,
    "checkpoint": True,
    "engine": True,
    "tracking": True,
    "evaluation": {"base", "branches"},
}
"""Settings of a run that may change between two starts of a study."""


def is_done(job: Job) -> bool:
    """True once everything that the study wants of the job is on disk."""
    if not job.is_measured:
        return checkpoint_folder(job, job.plan.total_steps).exists()
    return not missing_models(job)


def missing_models(job: Job) -> list[str]:
    """The models that have no results yet."""
    found = {*_json(job.root / "eval.json")}
    found |= {merge_model(name) for name in job.merges if _has_merge(job, name)}
    return [model for model in job.columns if model not in found]


def merge_file(job: Job, name: str) -> Path:
    """Where a further merge of the job's branches is kept."""
    return job.root / "merges" / f"{name}.json"


def _has_merge(job: Job, name: str) -> bool:
    """True if the merge was measured, and as it is asked for now."""
    settings = _json(merge_file(job, name)).get("settings")
    return settings == job.merges[name].model_dump(mode="json")


def checkpoint_folder(job: Job, step: int) -> Path:
    """Where a run keeps its checkpoint after a step."""
    return job.root / "checkpoints" / f"step_{step:08d}"


def steps_done(job: Job) -> int:
    """The last step whose line is written."""
    path = job.root / "timings.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
    return json.loads(lines[-1])["step"] if lines else 0


def work(job: Job) -> int:
    """Completions to train on and to measure, which take about the same time each; what another
    run trains is not counted."""
    return to_train(job) + to_measure(job)


def to_train(job: Job) -> int:
    """Completions that the job itself trains on."""
    rollout = job.config.rollout
    first = job.start.step if job.start else 0
    steps = 0 if job.method == BASE else _batches(job, job.plan.total_steps) - _batches(job, first)
    return steps * rollout.num_prompts * rollout.group_size


def to_measure(job: Job) -> int:
    """Completions of its final measurement, of all its columns."""
    evaluation = job.config.evaluation
    measured = evaluation.num_problems * evaluation.num_samples * len(job.config.domains)
    return measured * len(job.columns)


def work_done(job: Job) -> int:
    """The part of `work` whose lines are written; a measurement counts when it is complete."""
    if is_done(job):
        return work(job)
    first = job.start.step if job.start else 0
    rollout = job.config.rollout
    batches = _batches(job, max(first, steps_done(job))) - _batches(job, first)
    return batches * rollout.num_prompts * rollout.group_size


def check_unchanged(job: Job) -> None:
    """Refuse to mix what was trained with other settings into a study."""
    path = job.root / "config.json"
    if not path.exists():
        return
    before = Config.model_validate_json(path.read_text(encoding="utf-8"))
    if changed := _difference(_decisive(job, before), _decisive(job, job.config)):
        key, was, now = changed
        raise ValueError(
            f"{job.root} was made with other settings: got {key} = {now!r}, expected {was!r} as in "
            "its config.json. Restore the setting, delete that folder, or choose another "
            "output_dir."
        )


def _decisive(job: Job, config: Config) -> dict[str, Any]:
    """All settings that what the job leaves behind depends on."""
    if job.method == BASE:
        return measurement(config)
    return config.model_dump(mode="json", exclude=_FREE)


def _difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first place at which two trees of plain values differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (path, old, new)
    for key in dict.fromkeys([*old, *new]):
        below = f"{path}.{key}".lstrip(".")
        if found := _difference(old.get(key), new.get(key), below):
            return found
    return None


def _batches(job: Job, steps: int) -> int:
    """Batches of all branches in the first steps of the plan."""
    total = 0
    for stage in job.plan.stages:
        total += min(steps, stage.steps) * len(stage.actions)
        steps = max(0, steps - stage.steps)
    return total


def _json(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

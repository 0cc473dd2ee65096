"""How far jobs are, read from the files they write."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from copd.config import BASE, Config
from copd.lab.compare.jobs import Job, evaluation_settings, merge_model
from copd.storage import read_lines

LogLine = Mapping[str, Any]
"""A line of metrics.jsonl, rollouts.jsonl or timings.jsonl."""

_FREE = {
    **dict.fromkeys(("output_dir", "checkpoint", "engine", "tracking"), True),
    "evaluation": {"base", "branches"},
}
"""Settings of a run that may change when a study is continued."""

_FROM_FILES = ("num_train", "num_validation", "num_test", "fingerprint")
"""Settings of a domain that a run takes from its data files where they are unset."""


def is_done(job: Job) -> bool:
    """Return whether everything that the study needs of the job is on disk."""
    if job.is_measured:
        return not missing_models(job)
    return checkpoint_folder(job, job.plan.total_steps).exists()


def missing_models(job: Job) -> list[str]:
    """Return the models without results; a merge with other settings has none."""
    found = {*read_json(job.root / "eval.json")}
    for name, merge in job.merges.items():
        if read_json(merge_file(job, name)).get("settings") == merge.model_dump(mode="json"):
            found.add(merge_model(name))
    return [model for model in job.columns if model not in found]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file; an empty one if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def merge_file(job: Job, name: str) -> Path:
    """Return the path of the results of a further merge of the job's branches."""
    return job.root / "merges" / f"{name}.json"


def checkpoint_folder(job: Job, step: int) -> Path:
    """Return the path of the run's checkpoint after a step."""
    return job.root / "checkpoints" / f"step_{step:08d}"


def steps_done(job: Job) -> int:
    """Return the last step that is logged."""
    return max((line["step"] for line in read_lines(job.root / "timings.jsonl")), default=0)


def completions_to_train(job: Job, step: int | None = None) -> int:
    """Return how many completions the job itself trains on, up to a step or to its end."""
    if job.method == BASE:
        return 0
    first, last = job.start.step if job.start else 0, job.plan.total_steps if step is None else step
    batches, begin = 0, 0
    for stage in job.plan.stages:
        end = begin + stage.steps
        batches += max(0, min(last, end) - max(first, begin)) * len(stage.actions)
        begin = end
    return batches * job.config.rollout.num_prompts * job.config.rollout.group_size


def completions_to_evaluate(job: Job) -> int:
    """Return how many completions the final evaluation of all its columns samples."""
    evaluation = job.config.evaluation
    problems = evaluation.num_problems * len(job.config.domains)
    return problems * evaluation.num_samples * len(job.columns)


def total_completions(job: Job) -> int:
    """Return the completions to train on and to evaluate, which take about the same time each."""
    return completions_to_train(job) + completions_to_evaluate(job)


def completions_done(job: Job) -> int:
    """Return the part of the total that is logged; an evaluation counts when it is complete."""
    return total_completions(job) if is_done(job) else completions_to_train(job, steps_done(job))


def token_shares(metrics: Iterable[LogLine], branches: tuple[str, ...]) -> list[float]:
    """Return the share of each step's trained tokens, and so of its seconds, of these branches."""
    shares, before = [], dict[str, int]()
    for line in metrics:
        now = {name: cost["trained_tokens"] for name, cost in line["cost"].items()}
        tokens = {name: count - before.get(name, 0) for name, count in now.items()}
        shares.append(sum(tokens[name] for name in branches) / sum(tokens.values()))
        before = now
    return shares


def check_unchanged(job: Job) -> None:
    """Refuse to continue a study with a folder that was made with other settings."""
    if not (path := job.root / "config.json").exists():
        return
    before = Config.model_validate_json(path.read_text(encoding="utf-8"))
    if difference := _difference(_decisive(job, before), _decisive(job, job.config)):
        key, old, new = difference
        raise ValueError(
            f"{job.root} was made with other settings: got {key} = {new!r}, expected {old!r} as in "
            "its config.json. Restore the setting, delete that folder, or choose another "
            "output_dir."
        )


def _decisive(job: Job, config: Config) -> dict[str, Any]:
    """Return the settings that the job's results depend on."""
    if job.method == BASE:
        return evaluation_settings(config)
    return config.model_dump(mode="json", exclude=_FREE)


def _difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return the first place at which two trees of plain values differ, with both values."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return None if old == new else (path, old, new)
    for key in dict.fromkeys([*old, *new]):
        if key in _FROM_FILES and new.get(key) is None:
            continue
        below = f"{path}.{key}".lstrip(".")
        if found := _difference(old.get(key), new.get(key), below):
            return found
    return None

"""The files of a run, which may be unfinished or damaged.

What is missing or damaged becomes a sentence in `notes`; the rest is shown.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from copd.config import Config, load_config
from copd.monitor.results import DomainResult, from_json
from copd.storage import read_lines

T = TypeVar("T")
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError)
"""Errors from values of an unexpected shape; those of json are ValueErrors."""


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The small files of one run."""

    path: Path
    name: str
    """Name on the page."""
    method: str | None
    """The study's method, if the run is part of a study."""
    settings: dict[str, Any]
    """config.json as plain values; empty if it cannot be read."""
    config: Config | None
    """The same as a configuration; None if this version of copd does not accept it."""
    plan: dict[str, Any]
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    dynamics: list[dict[str, Any]]
    results: dict[str, dict[str, DomainResult]]
    """eval.json: model to domain to result."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, a sentence each."""

    @property
    def branches(self) -> list[str]:
        return list(self.plan.get("branches", []))

    @property
    def domains(self) -> list[str]:
        domains = self.settings.get("domains")
        return list(domains) if isinstance(domains, dict) else []

    @property
    def total_steps(self) -> int:
        return sum(stage["steps"] for stage in self.plan.get("stages", []))

    @property
    def done_steps(self) -> int:
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def models(self) -> list[str]:
        """Every model that the run can evaluate, the base first."""
        merge = self.plan.get("merge")
        return ["base", *self.branches, *([merge["into"]] if merge else [])]

    @property
    def final(self) -> str | None:
        """The one final model; None if every branch is one."""
        merge = self.plan.get("merge")
        return merge["into"] if merge else self.plan.get("result")

    @property
    def is_finished(self) -> bool:
        """Whether every model that the settings select for evaluation is evaluated."""
        given = self.settings.get("evaluation")
        evaluation = given if isinstance(given, dict) else {}
        expected = {self.final} if self.final else {*self.branches}
        if evaluation.get("base", True):
            expected.add("base")
        if evaluation.get("branches", True):
            expected.update(self.branches)
        return bool(self.branches) and expected <= set(self.results)

    def attempt(self, what: str, make: Callable[[], T], otherwise: T) -> T:
        """Return what `make` returns; if values are damaged, add a note and return `otherwise`."""
        try:
            return make()
        except DAMAGE as error:
            self.notes.append(f"{what} left out: {_reason(error)}.")
            return otherwise


def read_run(path: Path, *, name: str, method: str | None = None) -> RunFiles:
    """Read all files of a run but its rollouts."""
    notes: list[str] = []
    settings = _json(path / "config.json", notes)
    return RunFiles(
        path=path,
        name=name,
        method=method,
        settings=settings,
        config=_config(path / "config.json", notes) if settings else None,
        plan=_plan(path / "plan.json", notes),
        metrics=list(lines(path / "metrics.jsonl", notes, needs=("step", "branches"))),
        timings=list(lines(path / "timings.jsonl", notes, needs=("step", "seconds"))),
        evaluations=list(lines(path / "evaluations.jsonl", notes, needs=("step", "results"))),
        dynamics=list(lines(path / "dynamics.jsonl", notes, needs=("step", "models", "domains"))),
        results=_results(path / "eval.json", notes),
        notes=notes,
    )


def lines(path: Path, notes: list[str], *, needs: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of a file up to the first damaged one, which is noted."""
    read = 0
    try:
        for record in read_lines(path):
            if not isinstance(record, dict) or not set(needs) <= set(record):
                break
            if not isinstance(record["step"], int):
                break
            read += 1
            yield record
        else:
            return
    except ValueError:  # neither JSON nor UTF-8
        pass
    notes.append(f"{path.name} is damaged in line {read + 1}: only the lines before it are shown.")


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        notes.append(f"{path.name} is missing.")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        return value
    except ValueError as error:
        return _damaged(path, error, notes)


def _plan(path: Path, notes: list[str]) -> dict[str, Any]:
    plan = _json(path, notes)
    try:
        for stage in plan.get("stages", []):
            _ = int(stage["steps"]) + len(stage["name"])
        _ = [*plan.get("branches", [])], (plan.get("merge") or {"into": ""})["into"]
    except DAMAGE as error:
        return _damaged(path, error, notes)
    return plan


def _config(path: Path, notes: list[str]) -> Config | None:
    try:
        return load_config(path)
    except ValueError as error:
        first = str(error).splitlines()[0]
        notes.append(f"config.json cannot be loaded, so problems cannot be rebuilt: {first}")
        return None


def _results(path: Path, notes: list[str]) -> dict[str, dict[str, DomainResult]]:
    """Read eval.json, which is not there before the base is evaluated."""
    if not path.exists():
        return {}
    try:
        results = from_json(_json(path, notes))
        if not all(own and all(r.accuracy for r in own.values()) for own in results.values()):
            raise ValueError("a model has no evaluated problems")
        return results
    except DAMAGE as error:
        return _damaged(path, error, notes)


def _damaged(path: Path, error: BaseException, notes: list[str]) -> dict[str, Any]:
    notes.append(f"{path.name} is damaged: {_reason(error)}.")
    return {}


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"no {text}" if isinstance(error, KeyError) else text.rstrip(".")

"""Collect what the page needs in paper/results: the results of every study, and what it plots.

The folders of runs are large and stay where they ran. Seeds or methods of a study that ran apart,
on several days or machines, are joined.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from copd.config import BASE
from copd.lab.study import StudyResults, load_results, save_results
from copd.storage import read_lines, write_atomically
from paper.load import NAMES

PLOTTED = {
    "dynamics": ("dynamics.jsonl",),
    "divergence": ("metrics.jsonl",),
    "pilot": ("config.json", "dynamics.jsonl", "evaluations.jsonl", "eval.json"),
}
"""Study to the files of its runs that the page reads."""

STUDIES = Path(__file__).with_name("studies")

_FREE = ("seeds", "jobs", "output_dir", "methods")
"""Settings that may differ between parts of a study; a method that both have may not."""


def collect(studies: Path, collected: Path) -> None:
    """Copy the results of `copd compare` from `studies`, joined with those collected before."""
    for name in NAMES:
        source, target = studies / name, collected / name
        if not (source / "results.json").exists():
            continue
        results = load_results(source / "results.json")
        if (target / "results.json").exists():
            results = join(load_results(target / "results.json"), results, name=name)
        study = tomllib.loads((STUDIES / f"{name}.toml").read_text(encoding="utf-8"))
        target.mkdir(parents=True, exist_ok=True)
        save_results(target / "results.json", in_order(results, [*study["methods"]]))
        for file in PLOTTED.get(name, ()):
            for path in sorted(source.glob(f"runs/*/seed_*/{file}")):
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(copy, _plotted(path))


def in_order(results: StudyResults, methods: Sequence[str]) -> StudyResults:
    """Return the same results with their methods in this order, followed by others."""
    own = _methods(results)
    order = [*dict.fromkeys([BASE, *methods, *own])]
    outcomes = sorted(results.outcomes, key=lambda o: (order.index(o.method), o.seed))  # stable
    study = {**results.settings["study"], "methods": {m: own[m] for m in order if m in own}}
    settings = {**results.settings, "study": study}
    return replace(results, outcomes=tuple(outcomes), settings=settings)


def join(old: StudyResults, new: StudyResults, *, name: str) -> StudyResults:
    """Return the outcomes of both; where both have a column and seed, the newer one.

    Raises ValueError where they are not parts of one study.
    """
    _check_same(old, new, name)
    fresh = {(o.column, o.seed) for o in new.outcomes}
    outcomes = [*new.outcomes, *(o for o in old.outcomes if (o.column, o.seed) not in fresh)]
    bases = sorted((o for o in outcomes if o.method == BASE), key=lambda o: o.seed)
    again = bases[1:]  # each part measures the base once
    missing = [m for a, b in ((old, new), (new, old)) for m in a.missing if m not in _finished(b)]
    study = {**new.settings["study"]}
    study["seeds"] = sorted({*study["seeds"], *old.settings["study"]["seeds"]})
    study["methods"] = {**_methods(old), **_methods(new)}
    own = [*dict.fromkeys([*new.settings["own_budget"], *old.settings["own_budget"]])]
    shared = {**old.settings["shared_experts"], **new.settings["shared_experts"]}
    joined = replace(
        new,
        experts={**old.experts, **new.experts},
        outcomes=tuple(o for o in outcomes if o not in again),
        missing=tuple(dict.fromkeys(missing)),
        settings={**new.settings, "study": study, "own_budget": own, "shared_experts": shared},
    )
    return in_order(joined, ())


def _check_same(old: StudyResults, new: StudyResults, name: str) -> None:
    one, other = _identity(old), _identity(new)
    differing = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])
    if differing:
        raise ValueError(
            f"the collected results of {name} are of another study: {', '.join(differing)} "
            "differ, expected the same in all parts of a study. Remove the collected ones to "
            "replace them."
        )


def _identity(results: StudyResults) -> dict[str, Any]:
    """Return the settings that must be equal in all parts of a study that have them."""
    settings = results.settings
    study = {key: value for key, value in settings["study"].items() if key not in _FREE}
    if model := study.get("common", {}).get("model", {}).get("path"):  # the folder may move
        own = {**study["common"]["model"], "path": Path(model).name}
        study["common"] = {**study["common"], "model": own}
    methods = {f"methods.{key}": value for key, value in _methods(results).items()}
    return {**study, **methods, "versions": settings["versions"]}


def _methods(results: StudyResults) -> Mapping[str, Any]:
    return results.settings["study"]["methods"]


def _finished(results: StudyResults) -> set[str]:
    """Return the finished runs, named as in `missing`."""
    found = {(o.method, o.seed) for o in results.outcomes}
    named = {"the base" if own[0] == BASE else "{}, seed {}".format(*own) for own in found}
    return named - set(results.missing)


def _plotted(path: Path) -> str:
    """Return the text of a file; of metrics only cosines, as the rest is many times as large."""
    if path.name != "metrics.jsonl":
        return path.read_text(encoding="utf-8")
    lines = []
    for line in read_lines(path):
        branches = {
            branch: {key: v for key, v in own.items() if key.startswith("update/cosine/")}
            for branch, own in line["branches"].items()
        }
        lines.append(json.dumps({"step": line["step"], "branches": branches}) + "\n")
    return "".join(lines)

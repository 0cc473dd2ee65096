"""The studies that have results, and the curves that their runs have written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from copd.lab.study import StudyResults, Summary, load_results, summarize
from copd.monitor.results import Estimate
from copd.storage import read_lines

WORLDS = {"agree": "world_agree", "conflict": "three_branches", "scarce": "world_scarce"}
"""World to the study of all methods in it."""

LONG, HALF = "three_branches_long", "copd, half the rate"
"""The study of more steps in the world conflict, and a column that only it has."""

MAIN = ("three_branches", LONG, "two_branches", "world_agree", "world_scarce")
REMEDIES = {world: f"remedies_{world}" for world in WORLDS}
NAMES = (*MAIN, "ablations", "ratio", "beta", "dynamics", "divergence", "pilot", *REMEDIES.values())
"""All studies of the page, in its order; paper/studies has a file for each."""

Line = Mapping[str, Any]
Curve = Mapping[int, tuple[float, ...]]
"""Step to a value of each seed."""


@dataclass(frozen=True, eq=False)
class Found:
    """A study with results."""

    name: str
    root: Path
    results: StudyResults
    summary: Summary

    def runs(self, method: str) -> list[Path]:
        """Return the folders of a method's runs, by seed."""
        folders = (self.root / "runs" / method).glob("seed_*")
        return sorted(folders, key=lambda folder: int(folder.name.removeprefix("seed_")))


def find(studies: Path) -> dict[str, Found]:
    """Return the studies that have at least one result, by name."""
    found = {}
    for name in NAMES:
        path = studies / name / "results.json"
        if path.exists():
            results = load_results(path)
            found[name] = Found(name, studies / name, results, summarize(results))
    return found


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return mean and Student's 95 % interval over seeds; a single seed has no interval."""
    mean, num = float(np.mean(values)), len(values)
    if num < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = float(student_t.ppf(0.975, num - 1)) * float(np.std(values, ddof=1)) / math.sqrt(num)
    return Estimate(mean, mean - half, mean + half)


def curve(runs: Sequence[Path], file: str, value: Callable[[Line], float | None]) -> Curve:
    """Return a number of every line of a file, by step, for the steps that all runs have."""
    found: list[dict[int, float]] = []
    for root in runs:
        pairs = ((line["step"], value(line)) for line in read_lines(root / file))
        found.append({step: number for step, number in pairs if number is not None})
    steps = sorted(set.intersection(*map(set, found))) if found else []
    return {step: tuple(own[step] for own in found) for step in steps}


def between_branches(line: Line, quantity: str) -> float:
    """Return the mean over ordered pairs of branches, each on the domain of the teacher.

    Branches are named like their domains.
    """
    names = line["models"][:-1]
    values = [
        line["domains"][teacher][quantity][row][column]
        for row, student in enumerate(names)
        for column, teacher in enumerate(names)
        if student != teacher
    ]
    return float(np.mean(values))


def to_base(line: Line, quantity: str) -> float:
    """Return the mean over branches of their agreement with the base, on their own domains."""
    names = line["models"][:-1]
    own = [line["domains"][name][quantity][row][-1] for row, name in enumerate(names)]
    return float(np.mean(own))


def cosine(line: Line, a: str, b: str) -> float | None:
    """Return the cosine of the gradients of two domains in mixed RLVR; None if one is zero."""
    return line["branches"]["unified"].get(f"update/cosine/rlvr/{a}|rlvr/{b}")

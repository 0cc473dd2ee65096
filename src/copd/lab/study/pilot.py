"""The pilot study from finished runs of its recipe: gain from OPD against the overlap before it.

`python -m copd.lab.study.pilot RUN...` prints it. Runs nothing and knows no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from copd.config import EXPERT, PilotConfig, load_config
from copd.monitor.results import Estimate, from_json, gain, mean_interval
from copd.storage import read_lines

LEVEL = 0.95


@dataclass(frozen=True)
class Point:
    """One student: how like its teacher it was before being taught, and what teaching gave it."""

    seed: int
    student: str
    overlap: float
    """Top-k overlap with the teacher on the student's own completions."""
    symmetric_kl: float
    before: Estimate
    """Accuracy on the domain when teaching began."""
    gain: Estimate
    """Accuracy after minus before, paired over problems."""
    room: float
    """Accuracy of the teacher minus that of the student before: what there was to gain."""


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of overlap and gain over all points, with its bootstrap interval."""

    r: Estimate
    r_squared: Estimate
    slope: float
    """Gain per unit of overlap, least squares."""
    num_points: int
    num_runs: int


@dataclass(frozen=True)
class Explained:
    """What else could explain the gain: r with the room, and of overlap and gain at equal room."""

    room: Estimate
    at_equal_room: Estimate
    """Partial correlation: of what straight lines in the room leave of overlap and gain."""


def read_points(root: Path) -> list[Point]:
    """The students of a finished run of the recipe `pilot`."""
    config = load_config(root / "config.json")
    recipe = config.recipe
    if not isinstance(recipe, PilotConfig):
        raise ValueError(
            f'the pilot needs runs of recipe.type = "pilot": {root} has {recipe.type!r}. '
            "Run copd compare paper/studies/pilot.toml, and name its run of each seed."
        )
    at, domain = recipe.taught_from, recipe.domain
    dynamics = _line(root, "dynamics.jsonl", at)
    before = from_json(_line(root, "evaluations.jsonl", at)["results"])
    after = from_json(json.loads((root / "eval.json").read_text(encoding="utf-8")))
    if not set(recipe.students) <= set(after):
        raise ValueError(f"{root} has not finished: expected results of all students. Resume it.")
    models, found = dynamics["models"], dynamics["domains"][domain]
    teacher = models.index(EXPERT)
    reached = mean_interval(
        after[EXPERT][domain].accuracy
    ).mean  # teaching leaves the teacher as it is
    return [
        Point(
            seed=config.seed,
            student=name,
            overlap=found["overlap"][models.index(name)][teacher],
            symmetric_kl=found["symmetric_kl"][models.index(name)][teacher],
            before=mean_interval(before[name][domain].accuracy),
            gain=gain(after[name], before[name])[domain],
            room=reached - mean_interval(before[name][domain].accuracy).mean,
        )
        for name in recipe.students
    ]


def correlate(
    runs: Sequence[Sequence[tuple[float, float]]], *, seed: int = 0, resamples: int = 4000
) -> Correlation:
    """r of the (overlap, gain) of all students; a sequence of points for each run.

    Percentile bootstrap over points. The points of a run share its teacher, so with several runs a
    draw takes runs with replacement, and then points of each. Draws in which all overlaps or all
    gains are equal have no r and are left out.
    """
    arrays = [np.array(points, dtype=np.float64) for points in runs]
    pairs = np.concatenate(arrays)
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) == 0).any():
        raise ValueError(
            "a correlation needs three points or more whose overlaps and gains differ: got "
            f"{pairs.tolist()}. Train with more, or more different, recipe.temperatures."
        )
    drawn = _draws(arrays, pearson, seed, resamples)
    r = pearson(pairs)
    x, y = pairs.T
    return Correlation(
        r=_interval(r, drawn),
        r_squared=_interval(r**2, drawn**2),
        slope=float(r * y.std() / x.std()),
        num_points=len(pairs),
        num_runs=len(arrays),
    )


def explain(
    runs: Sequence[Sequence[Point]], *, seed: int = 0, resamples: int = 4000
) -> Explained | None:
    """Resampled like `correlate`; None where a correlation is not defined."""
    rows = [np.array([(p.overlap, p.gain.mean, p.room) for p in own]) for own in runs]
    every = np.concatenate(rows)
    found = []
    for statistic in (_with_room, partial):
        value = statistic(every)
        if np.isnan(value):
            return None
        found.append(_interval(value, _draws(rows, statistic, seed, resamples)))
    return Explained(*found)


def partial(rows: NDArray[np.float64]) -> float:
    """r of x and y in rows (x, y, z) once straight lines in z are taken off both."""
    x, y, z = (rows - rows.mean(axis=0)).T
    scale = float(z @ z)
    if not scale > 0:
        return float("nan")
    return pearson(np.stack([x - z * (x @ z) / scale, y - z * (y @ z) / scale], axis=1))


def _with_room(rows: NDArray[np.float64]) -> float:
    return pearson(rows[:, [2, 1]])


def _draws(
    arrays: Sequence[NDArray[np.float64]],
    statistic: Callable[[NDArray[np.float64]], float],
    seed: int,
    resamples: int,
) -> NDArray[np.float64]:
    """The statistic of resampled rows, where it is defined."""
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(_resample(arrays, rng)) for _ in range(resamples)])
    return drawn[~np.isnan(drawn)]


def pearson(pairs: NDArray[np.float64]) -> float:
    """`cov(x, y) / (std x * std y)` of rows (x, y); nan where one of them does not vary."""
    x, y = (pairs - pairs.mean(axis=0)).T
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def _resample(runs: Sequence[NDArray[np.float64]], rng: np.random.Generator) -> NDArray[np.float64]:
    chosen = rng.integers(len(runs), size=len(runs))
    return np.concatenate([runs[i][rng.integers(len(runs[i]), size=len(runs[i]))] for i in chosen])


def _interval(value: float, drawn: NDArray[np.float64]) -> Estimate:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _line(root: Path, name: str, step: int) -> dict:
    """The line of a step; the configuration sees to it that a run which got there has one."""
    for record in read_lines(root / name):
        if record["step"] == step:
            return record
    raise ValueError(f"{root / name} has no line of step {step}: the run is unfinished. Resume it.")


def to_table(points: Sequence[Point]) -> Table:
    """A row per student, by overlap; accuracies in percent with 95 % intervals over problems."""
    table = Table(title="gain from OPD by overlap with the teacher", title_justify="left")
    columns = ("seed", "student", "overlap", "symmetric KL", "before, %", "gain, points", "room")
    for column in columns:
        table.add_column(column, justify="left" if column == "student" else "right")
    for p in sorted(points, key=lambda point: point.overlap):
        table.add_row(
            str(p.seed),
            p.student,
            f"{p.overlap:.3f}",
            f"{p.symmetric_kl:.4f}",
            str(p.before),
            str(p.gain),
            f"{100 * p.room:.1f}",
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Prints points and correlation, or with --json both as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m copd.lab.study.pilot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished pilot run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        runs = [read_points(root) for root in arguments.runs]
        found = correlate([[(p.overlap, p.gain.mean) for p in own] for own in runs])
        why = explain(runs)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    points = [point for own in runs for point in own]
    if arguments.json:
        facts = {"correlation": asdict(found), "explained": asdict(why) if why else None}
        print(json.dumps({"points": [asdict(p) for p in points], **facts}))
        return 0
    console = Console()
    console.print(to_table(points))
    r, squared = found.r, found.r_squared
    console.print(
        f"r = {r.mean:.2f} [{r.low:.2f}, {r.high:.2f}], R^2 = {squared.mean:.2f} "
        f"[{squared.low:.2f}, {squared.high:.2f}] over {found.num_points} points of "
        f"{found.num_runs} runs; {found.slope:.2f} points of gain per point of overlap"
    )
    if why:
        room, equal = why.room, why.at_equal_room
        console.print(
            f"r of gain and room (teacher - before) = {room.mean:.2f} [{room.low:.2f}, "
            f"{room.high:.2f}]; of gain and overlap at equal room {equal.mean:.2f} "
            f"[{equal.low:.2f}, {equal.high:.2f}]"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

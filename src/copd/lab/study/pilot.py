"""The pilot study, from finished runs of its recipe: gain from OPD against the overlap before it.

`python -m copd.lab.study.pilot RUN...` prints it.
"""

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
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One student: its agreement with the teacher before OPD, and its gain from OPD."""

    seed: int
    student: str
    overlap: float
    """Top-k overlap with the teacher on the student's own completions."""
    symmetric_kl: float
    before: Estimate
    """Accuracy on the domain when OPD began."""
    gain: Estimate
    """Accuracy after minus before, paired over problems."""
    room: float
    """Accuracy of the teacher minus that of the student before OPD."""


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
    """Whether the room explains the gain: r of gain and room, and r at equal room."""

    room: Estimate
    at_equal_room: Estimate
    """Partial correlation of overlap and gain, with straight lines in the room removed."""


def read_points(root: Path) -> list[Point]:
    """Return the students of a finished run of the recipe `pilot`."""
    config = load_config(root / "config.json")
    recipe = config.recipe
    if not isinstance(recipe, PilotConfig):
        raise ValueError(
            f'the pilot needs runs of recipe.type = "pilot": {root} has {recipe.type!r}. '
            "Run copd compare paper/studies/pilot.toml, and name its run of each seed."
        )
    step, domain = recipe.opd_start, recipe.domain
    dynamics = _line(root, "dynamics.jsonl", step)
    before = from_json(_line(root, "evaluations.jsonl", step)["results"])
    after = from_json(json.loads((root / "eval.json").read_text(encoding="utf-8")))
    if not set(recipe.students) <= set(after):
        raise ValueError(f"{root} has not finished: expected results of all students. Resume it.")
    models, agreement = dynamics["models"], dynamics["domains"][domain]
    teacher = models.index(EXPERT)
    # the teacher is frozen during OPD
    teacher_accuracy = mean_interval(after[EXPERT][domain].accuracy).mean
    points = []
    for name in recipe.students:
        own, accuracy = models.index(name), mean_interval(before[name][domain].accuracy)
        points.append(
            Point(
                seed=config.seed,
                student=name,
                overlap=agreement["overlap"][own][teacher],
                symmetric_kl=agreement["symmetric_kl"][own][teacher],
                before=accuracy,
                gain=gain(after[name], before[name])[domain],
                room=teacher_accuracy - accuracy.mean,
            )
        )
    return points


def correlate(
    runs: Sequence[Sequence[tuple[float, float]]], *, seed: int = 0, resamples: int = 4000
) -> Correlation:
    """Return r of the (overlap, gain) of all students, given the points of each run.

    The interval is a percentile bootstrap over points. The points of a run share its teacher, so a
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
    """Correlate gain with room, resampled as in `correlate`; None where that is not defined."""
    arrays = [np.array([(p.overlap, p.gain.mean, p.room) for p in own]) for own in runs]
    found = []
    for statistic in (lambda rows: pearson(rows[:, [2, 1]]), partial):
        value = statistic(np.concatenate(arrays))
        if np.isnan(value):
            return None
        found.append(_interval(value, _draws(arrays, statistic, seed, resamples)))
    return Explained(*found)


def partial(rows: Floats) -> float:
    """Return r of x and y in rows (x, y, z) with straight lines in z removed from both."""
    x, y, z = (rows - rows.mean(axis=0)).T
    scale = float(z @ z)
    if not scale > 0:
        return float("nan")
    return pearson(np.stack([x - z * (x @ z) / scale, y - z * (y @ z) / scale], axis=1))


def pearson(pairs: Floats) -> float:
    """Return `cov(x, y) / (std x * std y)` of rows (x, y); nan where one does not vary."""
    x, y = (pairs - pairs.mean(axis=0)).T
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def to_table(points: Sequence[Point]) -> Table:
    """Return a table of students by overlap; accuracies with 95 % intervals over problems."""
    table = Table(title="gain from OPD by overlap with the teacher", title_justify="left")
    columns = ("seed", "student", "overlap", "symmetric KL", "before, %", "gain, points", "room")
    for column in columns:
        table.add_column(column, justify="left" if column == "student" else "right")
    for p in sorted(points, key=lambda point: point.overlap):
        numbers = (f"{p.overlap:.3f}", f"{p.symmetric_kl:.4f}")
        table.add_row(
            str(p.seed), p.student, *numbers, str(p.before), str(p.gain), f"{100 * p.room:.1f}"
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Print points and correlations, as text or with --json as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m copd.lab.study.pilot", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished pilot run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    try:
        runs = [read_points(root) for root in arguments.runs]
        found = correlate([[(p.overlap, p.gain.mean) for p in own] for own in runs])
        explained = explain(runs)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    points = [point for own in runs for point in own]
    if arguments.json:
        facts = {
            "points": [asdict(p) for p in points],
            "correlation": asdict(found),
            "explained": asdict(explained) if explained else None,
        }
        print(json.dumps(facts))
        return 0
    console = Console()
    console.print(to_table(points))
    console.print(
        f"r = {_ranged(found.r)}, R^2 = {_ranged(found.r_squared)} over {found.num_points} points "
        f"of {found.num_runs} runs; {found.slope:.2f} points of gain per point of overlap"
    )
    if explained:
        console.print(
            f"r of gain and room (teacher - before) = {_ranged(explained.room)}; of gain and "
            f"overlap at equal room {_ranged(explained.at_equal_room)}"
        )
    return 0


def _line(root: Path, name: str, step: int) -> dict:
    """Return the line of a step, which the recipe's checks guarantee in a run that got there."""
    for record in read_lines(root / name):
        if record["step"] == step:
            return record
    raise ValueError(f"{root / name} has no line of step {step}: the run is unfinished. Resume it.")


def _draws(
    arrays: Sequence[Floats], statistic: Callable[[Floats], float], seed: int, resamples: int
) -> Floats:
    """Return the statistic of resampled runs and points, where it is defined."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        runs = [arrays[i] for i in rng.integers(len(arrays), size=len(arrays))]
        rows = [run[rng.integers(len(run), size=len(run))] for run in runs]
        drawn.append(statistic(np.concatenate(rows)))
    return np.array([value for value in drawn if not np.isnan(value)])


def _interval(value: float, drawn: Floats) -> Estimate:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _ranged(value: Estimate) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())

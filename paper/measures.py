"""Claims about overlap, divergence and gradients during runs, and about the pilot's gain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np

from copd.lab.study.pilot import Correlation, Point, correlate, explain, read_points
from copd.monitor.results import Estimate
from paper.claims import Claim, Part, judge
from paper.load import Curve, Found, between_branches, cosine, curve, over_seeds, to_base

COUPLED, INDEPENDENT = "copd", "experts"
QUANTITIES = ("overlap", "symmetric_kl")

HIGH = 0.9
"""The overlap that the paper calls high: its coupled branches stay above it."""


def dynamics(found: Found) -> dict[tuple[str, str, str], Curve]:
    """Return curves by method, quantity, and "branches" or "base"."""
    return {
        (method, quantity, name): curve(
            found.runs(method), "dynamics.jsonl", partial(value, quantity=quantity)
        )
        for method in (COUPLED, INDEPENDENT)
        for quantity in QUANTITIES
        for name, value in (("branches", between_branches), ("base", to_base))
    }


def dynamics_claims(found: Found) -> list[Claim]:
    """Judge the overlap between branches at the end, coupled and independent."""
    curves = dynamics(found)
    coupled = curves[COUPLED, "overlap", "branches"]
    independent = curves[INDEPENDENT, "overlap", "branches"]
    steps = sorted(set(coupled) & set(independent))
    if len(steps) < 2:
        return []
    first, last = steps[0], steps[-1]
    parts = (
        _part(f"coupled - independent at step {last}", coupled[last], independent[last]),
        _part(f"independent, step {first} - step {last}", independent[first], independent[last]),
        _part(f"coupled - {HIGH} at step {last}", coupled[last], [HIGH] * len(coupled[last])),
    )
    return [Claim("overlap stays high under coupling and falls without", found.name, parts)]


def _part(text: str, a: Sequence[float], b: Sequence[float]) -> Part:
    """Return A minus B, paired by seed, in units of overlap."""
    difference = over_seeds(np.subtract(a, b).tolist())
    return Part(text, written(difference), judge(difference))


def written(value: Estimate) -> str:
    """Format a number with its interval, not in percent."""
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def cosines(found: Found) -> dict[str, Curve]:
    """Return the cosine of every pair of domains over the steps of mixed RLVR."""
    runs, pairs = found.runs("mixed"), combinations(found.results.problems, 2)
    return {f"{a}, {b}": curve(runs, "metrics.jsonl", partial(cosine, a=a, b=b)) for a, b in pairs}


def mean_cosines(found: Found) -> dict[str, Estimate]:
    """Return the mean cosine over all steps by pair, with intervals over seeds."""
    return {
        pair: over_seeds(np.mean(list(own.values()), axis=0).tolist())
        for pair, own in cosines(found).items()
        if own
    }


def pilot(found: Found) -> tuple[list[list[Point]], Correlation] | None:
    """Return the students of every finished run, and r of their overlap and gain."""
    runs = [read_points(root) for root in found.runs("pilot") if (root / "eval.json").exists()]
    if not runs:
        return None
    return runs, correlate([[(p.overlap, p.gain.mean) for p in own] for own in runs])


def pilot_claims(found: Found) -> list[Claim]:
    """Judge whether r is above zero."""
    measured = pilot(found)
    if measured is None:
        return []
    r, points = measured[1].r, measured[1].num_points
    part = Part(f"r of {points} students (paper: 0.89)", written(r), judge(r))
    return [Claim("the gain from OPD grows with overlap", found.name, (part,))]


def pilot_remarks(found: Found) -> list[str]:
    """Return the other correlates of the gain, a line each."""
    measured = pilot(found)
    why = explain(measured[0]) if measured else None
    if why is None:
        return []
    return [
        f"- r of gain and room, the teacher's accuracy minus the student's: {written(why.room)}",
        f"- r of gain and overlap at equal room: {written(why.at_equal_room)}",
        "",
    ]

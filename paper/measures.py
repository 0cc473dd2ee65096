"""Claims about what runs wrote on the way: overlap, divergence, gradients, the pilot's gain."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np

from copd.lab.study.pilot import Correlation, Point, correlate, explain, read_points
from copd.monitor.results import Estimate
from paper.claims import Claim, Part, judge
from paper.load import (
    Curve,
    Found,
    between_branches,
    cosine,
    curve,
    over_seeds,
    to_base,
)

COUPLED, INDEPENDENT = "copd", "experts"
QUANTITIES = ("overlap", "symmetric_kl")

HIGH = 0.9
"""What the paper calls high: its coupled branches stay above it."""


def dynamics(found: Found) -> dict[tuple[str, str, str], Curve]:
    """Curves by (method, quantity, what is compared)."""
    curves = {}
    for method in (COUPLED, INDEPENDENT):
        for quantity in QUANTITIES:
            for what, value in (("branches", between_branches), ("base", to_base)):
                reader = partial(value, quantity=quantity)
                curves[method, quantity, what] = curve(found.runs(method), "dynamics.jsonl", reader)
    return curves


def dynamics_claims(found: Found) -> list[Claim]:
    """Overlap between branches at the end, coupled and independent."""
    curves = dynamics(found)
    coupled = curves[COUPLED, "overlap", "branches"]
    independent = curves[INDEPENDENT, "overlap", "branches"]
    steps = sorted(set(coupled) & set(independent))
    if len(steps) < 2:
        return []
    first, last = steps[0], steps[-1]
    parts = [
        _part(f"coupled - independent at step {last}", coupled[last], independent[last]),
        _part(f"independent, step {first} - step {last}", independent[first], independent[last]),
        _part(f"coupled - {HIGH} at step {last}", coupled[last], [HIGH] * len(coupled[last])),
    ]
    text = "overlap stays high under coupling and falls without"
    return [Claim(text, found.name, tuple(parts))]


def _part(text: str, a: Sequence[float], b: Sequence[float]) -> Part:
    """A minus B, paired by seed, in units of overlap."""
    difference = over_seeds(np.subtract(a, b).tolist())
    return Part(text, written(difference), judge(difference))


def written(value: Estimate) -> str:
    """A number with its interval, not in percent."""
    return f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]"


def cosines(found: Found) -> dict[str, Curve]:
    """Cosine of every pair of domains over the steps of mixed RLVR."""
    domains = list(found.results.problems)
    return {
        f"{a}, {b}": curve(found.runs("mixed"), "metrics.jsonl", partial(cosine, a=a, b=b))
        for a, b in combinations(domains, 2)
    }


def mean_cosines(found: Found) -> dict[str, Estimate]:
    """Over all steps, by pair: mean and interval over seeds."""
    return {
        pair: over_seeds(np.mean(list(own.values()), axis=0).tolist())
        for pair, own in cosines(found).items()
        if own
    }


def pilot(found: Found) -> tuple[list[list[Point]], Correlation] | None:
    """The students of every run that has ended, and r of their overlap and gain."""
    done = [root for root in found.runs("pilot") if (root / "eval.json").exists()]
    runs = [read_points(root) for root in done]
    if not runs:
        return None
    return runs, correlate([[(p.overlap, p.gain.mean) for p in own] for own in runs])


def pilot_claims(found: Found) -> list[Claim]:
    """Whether r is above zero."""
    measured = pilot(found)
    if measured is None:
        return []
    r, points = measured[1].r, measured[1].num_points
    part = Part(f"r of {points} students (paper: 0.89)", written(r), judge(r))
    return [Claim("the gain from OPD grows with overlap", found.name, (part,))]


def pilot_remarks(found: Found) -> list[str]:
    """What else the gain goes with, a line each."""
    measured = pilot(found)
    why = explain(measured[0]) if measured else None
    if why is None:
        return []
    return [
        f"- r of gain and room, the teacher's accuracy minus the student's: {written(why.room)}",
        f"- r of gain and overlap at equal room: {written(why.at_equal_room)}",
        "",
    ]

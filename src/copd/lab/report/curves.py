"""From metrics and evaluations to the lines of charts, as plain values. Knows no HTML."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from copd.lab.report.reading import RunFiles
from copd.monitor.results import DomainResult, from_json, mean_interval

BATCH_QUANTITIES = (
    "reward",
    "accuracy",
    "entropy",
    "length",
    "truncated",
    "frac_reward_zero_std",
    "overlap",
    "symmetric_kl",
    "delta_mean",
)
"""What is charted of a batch, by domain; docs/metrics.md has the meanings."""

MAX_POINTS = 500
"""Points of a line; of longer runs every n-th step is kept, and the last."""
ALL_POINTS = 4000
"""The same of one line in all runs of the page together."""


def num_points(num_runs: int) -> int:
    """Points of a line on a page of so many runs."""
    return max(50, min(MAX_POINTS, ALL_POINTS // max(1, num_runs)))


def rounded(value: object) -> float | None:
    """A number in five digits for the page; None where there is no finite one."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def series(run: RunFiles, points: int) -> list[dict[str, Any]]:
    """One line per quantity, branch and action: `q b kind domain teacher x y`."""
    found: dict[tuple[str, str, str], tuple[list[int], list[float | None]]] = defaultdict(
        lambda: ([], [])
    )
    for record in thinned(run.metrics, points):
        for branch, metrics in record["branches"].items():
            for key, value in metrics.items():
                action, _, quantity = key.rpartition("/")
                if quantity in BATCH_QUANTITIES or key == "update/grad_norm":
                    _add(found[quantity, branch, action], record["step"], value)
        for branch, counts in record.get("cost", {}).items():
            for quantity in ("sampled_tokens", "scored_tokens"):
                _add(found[quantity, branch, "cost"], record["step"], counts[quantity])
    for record in thinned(run.timings, points):
        _add(found["seconds", "", "run"], record["step"], record["seconds"])
    return [
        {"q": quantity, "b": branch, **action_parts(action), "x": x, "y": y}
        for (quantity, branch, action), (x, y) in found.items()
        if any(value is not None for value in y)
    ]


def action_parts(action: str) -> dict[str, str]:
    """`rlvr/DOMAIN` is native, `opd/from_TEACHER/DOMAIN` cross; the rest belongs to no domain."""
    match action.split("/"):
        case ["rlvr", domain]:
            return {"kind": "native", "domain": domain, "teacher": ""}
        case ["opd", teacher, domain]:
            name = teacher.removeprefix("from_")
            return {"kind": "cross", "domain": domain, "teacher": name}
    return {"kind": "own", "domain": "", "teacher": ""}


def measured(run: RunFiles) -> list[dict[str, Any]]:
    """Held-out accuracy over steps, per model, domain and suite ("" is the whole domain)."""
    points: dict[tuple[str, str, str], list[tuple[int, float, float, float]]] = defaultdict(list)
    for model in run.branches:
        _measure(points, 0, {model: run.results.get("base", {})})
    for record in run.evaluations:
        _measure(points, record["step"], from_json(record["results"]))
    _measure(points, run.total_steps, {m: r for m, r in run.results.items() if m != "base"})
    return [
        {"b": model, "domain": domain, "suite": suite, **_columns(values)}
        for (model, domain, suite), values in points.items()
    ]


def _measure(
    points: dict[tuple[str, str, str], list[tuple[int, float, float, float]]],
    step: int,
    results: Mapping[str, Mapping[str, DomainResult]],
) -> None:
    for model, own in results.items():
        for domain, result in own.items():
            parts = {s: result.of_suite(s) for s in dict.fromkeys(result.suites)}
            for suite, values in {"": result.accuracy, **parts}.items():
                e = mean_interval(values)
                points[model, domain, suite].append((step, e.mean, e.low, e.high))


def _columns(values: Iterable[tuple[int, float, float, float]]) -> dict[str, list[float | None]]:
    names = ("x", "y", "low", "high")
    columns = zip(*values, strict=True)
    return {n: [rounded(v) for v in c] for n, c in zip(names, columns, strict=True)}


def thinned(records: list[dict[str, Any]], points: int) -> list[dict[str, Any]]:
    """Every n-th record, about `points` of them, and the last."""
    stride = max(1, -(-len(records) // points))
    kept = records[::stride]
    return kept if not records or kept[-1] is records[-1] else [*kept, records[-1]]


def _add(line: tuple[list[int], list[float | None]], step: int, value: object) -> None:
    line[0].append(step)
    line[1].append(rounded(value))

"""The lines of the charts: metrics and held-out accuracies over steps, as plain values."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from copd.lab.report.reading import RunFiles
from copd.monitor.results import DomainResult, from_json, mean_interval

BATCH_METRICS = (
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
"""Metrics of a batch that are charted by domain; docs/metrics.md explains them."""

MAX_POINTS = 500
"""Points of a line; of longer runs every n-th step is shown, and the last."""
ALL_POINTS = 4000
"""Points of one line in all runs of the page together."""


def num_points(num_runs: int) -> int:
    """Return the number of points of a line on a page of so many runs."""
    return max(50, min(MAX_POINTS, ALL_POINTS // max(1, num_runs)))


def rounded(value: object) -> float | None:
    """Round a number to five digits; None if it is not a finite number."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.5g}")


def series(run: RunFiles, points: int) -> list[dict[str, Any]]:
    """Return one line per metric, branch and action: `q b kind domain teacher x y`."""
    found: dict[tuple[str, str, str], tuple[list[int], list[float | None]]] = defaultdict(
        lambda: ([], [])
    )

    def add(metric: str, branch: str, action: str, step: int, value: object) -> None:
        x, y = found[metric, branch, action]
        x.append(step)
        y.append(rounded(value))

    for record in thinned(run.metrics, points):
        step = record["step"]
        for branch, metrics in record["branches"].items():
            for key, value in metrics.items():
                action, _, metric = key.rpartition("/")
                if metric in BATCH_METRICS or key == "update/grad_norm":
                    add(metric, branch, action, step, value)
        for branch, counts in record.get("cost", {}).items():
            for metric in ("sampled_tokens", "scored_tokens"):
                add(metric, branch, "cost", step, counts[metric])
    for record in thinned(run.timings, points):
        add("seconds", "", "run", record["step"], record["seconds"])
    return [
        {"q": metric, "b": branch, **action_parts(action), "x": x, "y": y}
        for (metric, branch, action), (x, y) in found.items()
        if any(value is not None for value in y)
    ]


def action_parts(action: str) -> dict[str, str]:
    """Split `rlvr/DOMAIN` (native) or `opd/from_TEACHER/DOMAIN` (cross) into its parts."""
    match action.split("/"):
        case ["rlvr", domain]:
            return {"kind": "native", "domain": domain, "teacher": ""}
        case ["opd", teacher, domain]:
            name = teacher.removeprefix("from_")
            return {"kind": "cross", "domain": domain, "teacher": name}
    return {"kind": "own", "domain": "", "teacher": ""}


def measured(run: RunFiles) -> list[dict[str, Any]]:
    """Return held-out accuracy over steps by model, domain and suite; "" is the whole domain."""
    points: dict[tuple[str, str, str], list[tuple[float, ...]]] = defaultdict(list)

    def add(step: int, results: Mapping[str, Mapping[str, DomainResult]]) -> None:
        for model, own in results.items():
            for domain, result in own.items():
                suites = {s: result.of_suite(s) for s in dict.fromkeys(result.suites)}
                for suite, values in {"": result.accuracy, **suites}.items():
                    e = mean_interval(values)
                    points[model, domain, suite].append((step, e.mean, e.low, e.high))

    for model in run.branches:
        add(0, {model: run.results.get("base", {})})
    for record in run.evaluations:
        add(record["step"], from_json(record["results"]))
    add(run.total_steps, {m: r for m, r in run.results.items() if m != "base"})
    names = ("x", "y", "low", "high")
    return [
        {"b": model, "domain": domain, "suite": suite}
        | {name: [rounded(values[i]) for values in own] for i, name in enumerate(names)}
        for (model, domain, suite), own in points.items()
    ]


def thinned(records: list[dict[str, Any]], points: int) -> list[dict[str, Any]]:
    """Return every n-th record, about `points` of them, and the last."""
    stride = max(1, -(-len(records) // points))
    chosen = records[::stride]
    return chosen if not records or chosen[-1] is records[-1] else [*chosen, records[-1]]

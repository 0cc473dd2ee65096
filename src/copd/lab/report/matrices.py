"""Overlap and KL of every pair of branches over time, as plain values.

They come from dynamics.jsonl, which has all pairs, or else from metrics.jsonl, which has students
and their teachers.
"""

from collections import defaultdict
from typing import Any

from copd.lab.report.curves import MAX_POINTS, action_parts, rounded, thinned
from copd.lab.report.reading import RunFiles

METRICS = {"overlap": 1.0, "symmetric_kl": 0.0}
"""The compared metrics, and their value of a model with itself."""

Matrix = list[list[float | None]]


def matrices(run: RunFiles) -> dict[str, Any]:
    """Return `models`, and `moments`: a step, its stage, and matrices by domain and metric.

    The row is the model that sampled the tokens, the column the model compared with it.
    """
    return _from_dynamics(run) if run.dynamics else _from_metrics(run)


def _from_dynamics(run: RunFiles) -> dict[str, Any]:
    models = list(dict.fromkeys(m for record in run.dynamics for m in record["models"]))
    moments = [
        _moment(
            record,
            {
                domain: {m: _placed(record["models"], models, table[m]) for m in METRICS}
                for domain, table in record["domains"].items()
            },
        )
        for record in thinned(run.dynamics, MAX_POINTS)
    ]
    return {"all_pairs": True, "models": models, "moments": moments}


def _moment(record: dict[str, Any], domains: dict[str, dict[str, Matrix]]) -> dict[str, Any]:
    return {"step": record["step"], "stage": record.get("stage", ""), "domains": domains}


def _placed(rows: list[str], models: list[str], table: Matrix) -> Matrix:
    """Arrange a table of `rows` as one of `models`, with None for pairs it does not have."""
    cells = {
        (a, b): rounded(value)
        for a, row in zip(rows, table, strict=True)
        for b, value in zip(rows, row, strict=True)
    }
    return [[cells.get((a, b)) for b in models] for a in models]


def _from_metrics(run: RunFiles) -> dict[str, Any]:
    models, moments = run.branches, []
    for record in run.metrics:
        found: dict[str, dict[tuple[str, str, str], float | None]] = defaultdict(dict)
        for branch, metrics in record["branches"].items():
            for key, value in metrics.items():
                action, _, metric = key.rpartition("/")
                parts = action_parts(action)
                if parts["kind"] == "cross" and metric in METRICS:
                    found[parts["domain"]][metric, branch, parts["teacher"]] = rounded(value)
        domains = {
            domain: {
                m: [[own if a == b else cells.get((m, a, b)) for b in models] for a in models]
                for m, own in METRICS.items()
            }
            for domain, cells in found.items()
        }
        if domains:
            moments.append(_moment(record, domains))
    return {"all_pairs": False, "models": models, "moments": thinned(moments, MAX_POINTS)}

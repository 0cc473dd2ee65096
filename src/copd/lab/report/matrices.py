"""How far apart branches are, pair by pair over time, as plain values.

From dynamics.jsonl, where every pair is measured, or else from what students and their teachers
told in metrics.jsonl.
"""

from __future__ import annotations

from typing import Any

from copd.lab.report.curves import MAX_POINTS, action_parts, rounded, thinned
from copd.lab.report.reading import RunFiles

QUANTITIES = ("overlap", "symmetric_kl")
Matrix = list[list[float | None]]


def matrices(run: RunFiles) -> dict[str, Any]:
    """`models`, and per moment its `step`, `stage` and matrices by domain and quantity.

    Row: whose tokens; column: who is compared.
    """
    if run.dynamics:
        return _from_dynamics(run)
    return _from_metrics(run)


def _from_dynamics(run: RunFiles) -> dict[str, Any]:
    models = list(dict.fromkeys(m for record in run.dynamics for m in record["models"]))
    moments = [
        {
            "step": record["step"],
            "stage": record.get("stage", ""),
            "domains": {
                domain: {q: _placed(record["models"], models, table[q]) for q in QUANTITIES}
                for domain, table in record["domains"].items()
            },
        }
        for record in thinned(run.dynamics, MAX_POINTS)
    ]
    return {"all_pairs": True, "models": models, "moments": moments}


def _placed(rows: list[str], models: list[str], table: Matrix) -> Matrix:
    """The table with a row and a column for each of `models`; null where it has none."""
    cells = {
        (a, b): rounded(value)
        for a, row in zip(rows, table, strict=True)
        for b, value in zip(rows, row, strict=True)
    }
    return [[cells.get((a, b)) for b in models] for a in models]


def _from_metrics(run: RunFiles) -> dict[str, Any]:
    moments = []
    for record in run.metrics:
        cells: dict[str, dict[tuple[str, str, str], float | None]] = {}
        for branch, metrics in record["branches"].items():
            for key, value in metrics.items():
                action, _, quantity = key.rpartition("/")
                parts = action_parts(action)
                if parts["kind"] == "cross" and quantity in QUANTITIES:
                    place = (quantity, branch, parts["teacher"])
                    cells.setdefault(parts["domain"], {})[place] = rounded(value)
        if cells:
            domains = {
                domain: {q: _filled(q, run.branches, own) for q in QUANTITIES}
                for domain, own in cells.items()
            }
            moments.append(
                {"step": record["step"], "stage": record.get("stage", ""), "domains": domains}
            )
    return {"all_pairs": False, "models": run.branches, "moments": thinned(moments, MAX_POINTS)}


def _filled(
    quantity: str, models: list[str], cells: dict[tuple[str, str, str], float | None]
) -> Matrix:
    own = 1.0 if quantity == "overlap" else 0.0
    return [[own if a == b else cells.get((quantity, a, b)) for b in models] for a in models]

"""A diagnosis as JSON and as text for a terminal. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from copd.lab.diagnose.findings import (
    LABELS,
    Diagnosis,
    DomainDiagnosis,
    GroupMeasurement,
    Measured,
)
from copd.lab.diagnose.verdict import WORDS, overall
from copd.monitor.results import Estimate

RULE_OF_THUMB = "A rule of thumb, not a fact: only training tells. The rules: docs/diagnose.md."

ACCURACIES = {
    "student": "accuracy, student",
    "teacher": "accuracy, teacher",
    "difference": "difference",
}


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything as plain values; an interval of a single problem is null."""
    return {
        "student": diagnosis.student,
        "teacher": diagnosis.teacher,
        "verdict": overall(d.verdict for d in diagnosis.domains.values()),
        "overlap_k": diagnosis.overlap_k,
        "split": diagnosis.split,
        "seed": diagnosis.seed,
        "num_samples": diagnosis.num_samples,
        "domains": {
            name: {
                "verdict": own.verdict.word,
                "reasons": list(own.verdict.reasons),
                "kl": "exact" if own.is_exact else "lower bound",
                **_part(own.whole),
                "suites": {suite: _part(part) for suite, part in own.suites.items()},
                "positions": [
                    {"first": b.first, "last": b.last, **_measured(b.measured)} for b in own.bins
                ],
            }
            for name, own in diagnosis.domains.items()
        },
    }


def _part(part: GroupMeasurement) -> dict[str, Any]:
    return {"accuracy": _plain(part.accuracy), **_measured(part.measured)}


def _measured(measured: Measured) -> dict[str, Any]:
    return {
        "num_problems": measured.num_problems,
        "num_tokens": measured.num_tokens,
        "measures": _plain(measured.means),
    }


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {
            key: value if math.isfinite(value) else None
            for key, value in (("mean", e.mean), ("low", e.low), ("high", e.high))
        }
        for name, e in estimates.items()
    }


Rows = list[tuple[str, list[str]]]
"""A label and its cells."""


def part_rows(own: DomainDiagnosis, overlap_k: int) -> tuple[list[str], Rows]:
    """The head and the rows of a domain's table: all of it, then its suites if there are more."""
    columns = {"all": own.whole, **(own.suites if len(own.suites) > 1 else {})}
    rows = [
        (label, [_cell(part.accuracy[name], 100.0) for part in columns.values()])
        for name, label in ACCURACIES.items()
    ]
    means = [part.measured.means for part in columns.values()]
    rows += [
        (label_of(name, overlap_k), [_cell(own_means[name], 1.0) for own_means in means])
        for name in LABELS
    ]
    rows.append(("problems", [str(part.measured.num_problems) for part in columns.values()]))
    rows.append(("tokens", [str(part.measured.num_tokens) for part in columns.values()]))
    return list(columns), rows


def position_rows(own: DomainDiagnosis, overlap_k: int) -> tuple[list[str], Rows]:
    """By position, a row per bin: what matters most."""
    shown = ("overlap", "symmetric_kl", "delta")
    return [label_of(name, overlap_k) for name in shown], [
        (
            f"{b.first} to {b.last}" if b.first < b.last else f"{b.first}",
            [_cell(b.measured.means[name], 1.0) for name in shown],
        )
        for b in own.bins
    ]


def label_of(name: str, overlap_k: int) -> str:
    """What a measure is called where k is known."""
    return LABELS[name].replace("top k", f"top {overlap_k}").replace("@k", f"@{overlap_k}")


def to_console(diagnosis: Diagnosis) -> Group:
    """The verdict, then every domain with its reasons and numbers."""
    parts: list[Text | Table] = [
        Text(f"{diagnosis.student} learns from {diagnosis.teacher}?", style="bold"),
        Text(f"{overall(d.verdict for d in diagnosis.domains.values())}.\n{RULE_OF_THUMB}"),
    ]
    for name, own in diagnosis.domains.items():
        parts.append(Text(f"\n{name}: {WORDS[own.verdict.word]}.", style="bold"))
        parts += [Text(f"- {reason}") for reason in own.verdict.reasons]
        parts.append(_table(name, *part_rows(own, diagnosis.overlap_k)))
        parts.append(_table("tokens", *position_rows(own, diagnosis.overlap_k)))
    parts.append(Text(notes(diagnosis), style="dim"))
    return Group(*parts)


def notes(diagnosis: Diagnosis) -> str:
    """What the numbers are."""
    kinds = {own.is_exact for own in diagnosis.domains.values()}
    kl = "exact" if kinds == {True} else "lower bounds over the student's told top tokens"
    return (
        f"On the student's own rollouts at temperature 1, {diagnosis.num_samples} per "
        f"{diagnosis.split} problem; accuracy in % of each on its own. Intervals: 95 % over "
        f"problems. Teacher on student's top {diagnosis.overlap_k}: the mass it gives them. "
        f"KL, entropy and delta in nats; KLs are {kl}."
    )


def _table(title: str, head: list[str], rows: Rows) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(title)
    for name in head:
        table.add_column(name, justify="right")
    for label, cells in rows:
        table.add_row(label, *cells)
    return table


def _cell(e: Estimate, scale: float) -> str:
    """Mean and half the interval; a single problem has none."""
    mean, half = scale * e.mean, scale * (e.high - e.low) / 2
    digits = 1 if scale > 1 else 3
    text = f"{mean:.{digits}f}"
    return f"{text} \u00b1{half:.{digits}f}" if math.isfinite(half) else text

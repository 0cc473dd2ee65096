"""A diagnosis as JSON and as tables for a terminal."""

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
    TokenSummary,
)
from copd.lab.diagnose.verdict import WORDS, overall
from copd.monitor.results import Estimate

RULE_OF_THUMB = (
    "This is a rule of thumb: only training decides. docs/diagnose.md describes the rules."
)

ACCURACIES = {
    "student": "accuracy, student",
    "teacher": "accuracy, teacher",
    "difference": "difference",
}

Rows = tuple[list[str], list[list[str]]]
"""The heading and the rows of a table, whose first column is a label."""


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as plain values; the interval of a single problem is null."""
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
                **_group(own.whole),
                "suites": {suite: _group(group) for suite, group in own.suites.items()},
                "positions": [
                    {"first": b.first, "last": b.last, **_summary(b.summary)} for b in own.bins
                ],
            }
            for name, own in diagnosis.domains.items()
        },
    }


def _group(group: GroupMeasurement) -> dict[str, Any]:
    return {"accuracy": _plain(group.accuracy), **_summary(group.summary)}


def _summary(summary: TokenSummary) -> dict[str, Any]:
    return {
        "num_problems": summary.num_problems,
        "num_tokens": summary.num_tokens,
        "measures": _plain(summary.means),
    }


def _plain(estimates: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {key: value if math.isfinite(value) else None for key, value in vars(e).items()}
        for name, e in estimates.items()
    }


def group_table(name: str, own: DomainDiagnosis, overlap_k: int) -> Rows:
    """Return the measures of a domain, and of its suites if it has several."""
    columns = {"all": own.whole, **(own.suites if len(own.suites) > 1 else {})}
    groups = columns.values()
    rows = [
        [label, *(_cell(g.accuracy[key], 100.0) for g in groups)]
        for key, label in ACCURACIES.items()
    ]
    rows += [
        [label_of(key, overlap_k), *(_cell(g.summary.means[key], 1.0) for g in groups)]
        for key in LABELS
    ]
    rows.append(["problems", *(str(g.summary.num_problems) for g in groups)])
    rows.append(["tokens", *(str(g.summary.num_tokens) for g in groups)])
    return [name, *columns], rows


def position_table(own: DomainDiagnosis, overlap_k: int) -> Rows:
    """Return the main measures by position."""
    shown = ("overlap", "symmetric_kl", "delta")
    return ["tokens", *(label_of(key, overlap_k) for key in shown)], [
        [
            f"{b.first} to {b.last}" if b.first < b.last else f"{b.first}",
            *(_cell(b.summary.means[key], 1.0) for key in shown),
        ]
        for b in own.bins
    ]


def label_of(name: str, overlap_k: int) -> str:
    """Return the label of a measure with the value of k."""
    return LABELS[name].replace("top k", f"top {overlap_k}").replace("@k", f"@{overlap_k}")


def to_console(diagnosis: Diagnosis) -> Group:
    """Return the verdict, and the reasons and measures of every domain."""
    parts: list[Text | Table] = [
        Text(f"Can {diagnosis.student} learn from {diagnosis.teacher}?", style="bold"),
        Text(f"{overall(d.verdict for d in diagnosis.domains.values())}.\n{RULE_OF_THUMB}"),
    ]
    for name, own in diagnosis.domains.items():
        parts.append(Text(f"\n{name}: {WORDS[own.verdict.word]}.", style="bold"))
        parts += [Text(f"- {reason}") for reason in own.verdict.reasons]
        parts.append(_table(group_table(name, own, diagnosis.overlap_k)))
        parts.append(_table(position_table(own, diagnosis.overlap_k)))
    parts.append(Text(notes(diagnosis), style="dim"))
    return Group(*parts)


def notes(diagnosis: Diagnosis) -> str:
    """Return what the numbers mean."""
    kinds = {own.is_exact for own in diagnosis.domains.values()}
    kl = "exact" if kinds == {True} else "lower bounds, from the student's probed top tokens"
    return (
        f"Measured on the student's rollouts at temperature 1, {diagnosis.num_samples} per "
        f"{diagnosis.split} problem; accuracies in % are of each model's own rollouts. Intervals: "
        f"95 % over problems. Teacher on student's top {diagnosis.overlap_k}: the probability that "
        f"the teacher gives to them. KL, entropy and delta in nats; KLs are {kl}."
    )


def _table(rows: Rows) -> Table:
    head, body = rows
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left")
    for row in body:
        table.add_row(*row)
    return table


def _cell(e: Estimate, scale: float) -> str:
    """Format the mean and half the interval, which a single problem does not have."""
    mean, half = scale * e.mean, scale * (e.high - e.low) / 2
    digits = 1 if scale > 1 else 3
    text = f"{mean:.{digits}f}"
    return f"{text} \u00b1{half:.{digits}f}" if math.isfinite(half) else text

"""From the answers of two workers to what a table needs. Starts nothing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.steps import ALL_ROWS, NUM_STEPS, ONE_ROW

CLOCKS = ("wall", "cpu")
"""Seconds on the clock on the wall, and those of the process; in this order in an answer."""

Answer = dict[str, Any]
"""What a worker says after a step; see benchmarks/turns.py."""


@dataclass(frozen=True)
class Spread:
    """Of a handful of numbers."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        if len(ordered) < 2:
            return cls(*ordered * 5)
        lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(statistics.median(ordered), lower, upper, ordered[0], ordered[-1])


def seconds_of(answer: Answer, side: str, clock: int) -> float:
    """What a step took; done in parts, without the second of its two optimizer updates."""
    seconds = answer["seconds"][clock]
    return seconds - answer["phases"]["optimizer"][clock] / 2 if side == "parts" else seconds


def ratios(
    reference: str, theirs: Sequence[Answer], ours: Sequence[Answer], clock: int
) -> list[float]:
    """Reference over ours, round by round: what both suffer from at the time cancels."""
    return [
        seconds_of(their, reference, clock) / seconds_of(our, "ours", clock)
        for their, our in zip(theirs, ours, strict=True)
    ]


def shares(answers: Sequence[Answer], clock: int) -> dict[str, float]:
    """Median share of a step per phase; `optimizer` is a part of the update."""
    names = dict.fromkeys(name for answer in answers for name in answer["phases"])
    return {
        name: statistics.median(
            answer["phases"].get(name, (0.0, 0.0))[clock] / answer["seconds"][clock]
            for answer in answers
        )
        for name in names
    }


def summary(
    reference: str,
    theirs: Sequence[Answer],
    ours: Sequence[Answer],
    counted: tuple[Answer, Answer],
    matmul: tuple[Sequence[Answer], Answer],
    least: int,
    decoded: Sequence[Answer],
) -> dict[str, Any]:
    """Everything about one case, on both clocks; `counted` are the steps whose FLOPs were counted,
    reference first, `decoded` the turns of benchmarks/steps.py."""
    rates, rate_counted = matmul
    return {
        "clocks": {
            name: {
                "ratio": asdict(Spread.of(ratios(reference, theirs, ours, clock))),
                "seconds": asdict(Spread.of([seconds_of(a, "ours", clock) for a in ours])),
                "reference_seconds": asdict(
                    Spread.of([seconds_of(a, reference, clock) for a in theirs])
                ),
                "shares": shares(ours, clock),
                "reference_shares": shares(theirs, clock),
                "matmul_rate": rate_counted["flops"]
                / statistics.median(answer["seconds"][clock] for answer in rates),
                "decode_step": {
                    name: statistics.median(a["phases"][name][clock] for a in decoded) / NUM_STEPS
                    for name in (ALL_ROWS, ONE_ROW)
                },
            }
            for clock, name in enumerate(CLOCKS)
        },
        "flops": {
            "least": least,
            "ours": counted[1]["flops"],
            "reference": counted[0]["flops"],
        },
        "memory": {
            "ours": {"peak": ours[-1]["peak"], "growth": ours[-1]["growth"]},
            "reference": {"peak": theirs[-1]["peak"], "growth": theirs[-1]["growth"]},
        },
        "tokens": ours[-1]["tokens"],
    }

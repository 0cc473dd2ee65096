"""The numbers of a case, from the measurements of its workers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.steps import ALL_ROWS, NUM_STEPS, ONE_ROW

CLOCKS = ("wall", "cpu")
"""Wall time and CPU time of the process, in the order of an answer."""

Answer = dict[str, Any]
"""A worker's message after a step; see benchmarks/turns.py."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and extremes of a few numbers."""
    ordered = sorted(values)
    lower = upper = ordered[0]
    if len(ordered) > 1:
        lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
    median, least, most = statistics.median(ordered), ordered[0], ordered[-1]
    return {"median": median, "lower": lower, "upper": upper, "least": least, "most": most}


def seconds_of(answer: Answer, side: str, clock: int) -> float:
    """Return the seconds of a step; in parts, without the second of its two optimizer updates."""
    seconds = answer["seconds"][clock]
    return seconds - answer["phases"]["optimizer"][clock] / 2 if side == "parts" else seconds


def ratios(
    reference: str, theirs: Sequence[Answer], ours: Sequence[Answer], clock: int
) -> list[float]:
    """Return reference over ours, round by round, so that the state of the machine cancels."""
    return [
        seconds_of(their, reference, clock) / seconds_of(our, "ours", clock)
        for their, our in zip(theirs, ours, strict=True)
    ]


def shares(answers: Sequence[Answer], clock: int) -> dict[str, float]:
    """Return the median share of each phase in a step; `optimizer` is a part of the update."""
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
    """Return all numbers of a case on both clocks.

    `counted` are the steps whose FLOPs were counted, reference first; `decoded` are the turns of
    benchmarks/steps.py.
    """
    rates, rate_counted = matmul

    def on(clock: int) -> dict[str, Any]:
        seconds = [seconds_of(answer, "ours", clock) for answer in ours]
        reference_seconds = [seconds_of(answer, reference, clock) for answer in theirs]
        matmul_seconds = statistics.median(answer["seconds"][clock] for answer in rates)
        return {
            "ratio": spread(ratios(reference, theirs, ours, clock)),
            "seconds": spread(seconds),
            "reference_seconds": spread(reference_seconds),
            "shares": shares(ours, clock),
            "reference_shares": shares(theirs, clock),
            "matmul_rate": rate_counted["flops"] / matmul_seconds,
            "decode_step": {
                name: statistics.median(a["phases"][name][clock] for a in decoded) / NUM_STEPS
                for name in (ALL_ROWS, ONE_ROW)
            },
        }

    return {
        "clocks": {name: on(clock) for clock, name in enumerate(CLOCKS)},
        "flops": {"least": least, "ours": counted[1]["flops"], "reference": counted[0]["flops"]},
        "memory": {
            "ours": {"peak": ours[-1]["peak"], "growth": ours[-1]["growth"]},
            "reference": {"peak": theirs[-1]["peak"], "growth": theirs[-1]["growth"]},
        },
        "tokens": ours[-1]["tokens"],
    }

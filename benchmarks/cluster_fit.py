"""Fits a machine's rates to the measured seconds of steps. Knows no runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from copd.planning.cluster import Machine, Setup, Workload, seconds_by_method
from copd.recipes import Stage


@dataclass(frozen=True)
class Seen:
    """A step of a run: its work, and CPU seconds by method and branch."""

    stage: Stage
    setup: Setup
    sampled: Mapping[str, Sequence[Workload]]
    asked: Mapping[str, Sequence[Workload]]
    seconds: Mapping[str, Mapping[str, float]]


_NOTHING = Machine(
    "this CPU",
    flops=1e9,
    bandwidth=1e9,
    memory=1e30,
    links=1e30,
    network=1e30,
    bandwidth_efficiency=1e30,
    optimizer_efficiency=1e30,
    pass_efficiency=1e30,
    train_efficiency=1e30,
    decode_efficiency=1e30,
    layer_seconds=0.0,
    pass_seconds=0.0,
    prompt_seconds=0.0,
    store=1e30,
)
"""Infinitely fast: a rate alone is what makes it slower."""

_SHARES: dict[str, tuple[str, ...]] = {
    "score": ("pass_efficiency", "pass_seconds"),
    "sample": ("decode_efficiency", "layer_seconds", "prompt_seconds"),
    "update": ("train_efficiency", "optimizer_efficiency"),
}
"""Which rates are fitted to which method, in this order: later ones take earlier ones as they are."""


def fit(steps: Sequence[Seen]) -> Machine:
    """Rates by least squares on relative errors, never negative; a GFLOP/s is the unit of flops."""
    machine = _NOTHING
    for method, names in _SHARES.items():
        seconds = [s for step in steps for s in step.seconds[method].values()]
        rest = costs(machine, steps, method)
        columns = [costs(unit(machine, name), steps, method) - rest for name in names]
        scale = np.array(seconds)[:, None]
        matrix = np.stack(columns, axis=1) / scale
        found = not_negative(matrix, 1 - rest / scale[:, 0])
        for name, value in zip(names, found, strict=True):
            machine = replace(machine, **{name: rate(name, value)})
    return machine


def unit(machine: Machine, name: str) -> Machine:
    """The machine with one of its rates at 1."""
    return replace(machine, **{name: rate(name, 1.0)})


def rate(name: str, value: float) -> float:
    """Seconds are as fitted; what seconds are divided by is 1 / the fitted."""
    if name.endswith("seconds"):
        return value
    return 1 / value if value > 0 else 1e30


def costs(machine: Machine, steps: Sequence[Seen], method: str) -> np.ndarray:
    """Predicted seconds of a method, branch by branch, in the order of what was measured."""
    found = []
    for step in steps:
        methods = seconds_by_method(machine, step.setup, step.sampled, step.asked)
        found += [methods[method][name] for name in step.seconds[method]]
    return np.array(found)


def not_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least squares; columns that come out negative are left out, the worst first."""
    kept = list(range(matrix.shape[1]))
    while True:
        found = np.linalg.lstsq(matrix[:, kept], target, rcond=None)[0]
        if (found >= 0).all():
            break
        kept.pop(int(found.argmin()))
    whole = np.zeros(matrix.shape[1])
    whole[kept] = found
    return whole

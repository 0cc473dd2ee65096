"""Rates that are fitted to seconds made of known rates give those seconds back."""

from dataclasses import replace

import pytest

from benchmarks.cluster_fit import _NOTHING, Seen, fit
from copd.planning.cluster import QWEN3_VL_4B, Lengths, Setup, Workload, seconds_by_method
from copd.recipes import RLVR, Stage

TRUE = replace(
    _NOTHING,
    pass_efficiency=20.0,
    train_efficiency=15.0,
    decode_efficiency=9.0,
    optimizer_efficiency=0.1,
    pass_seconds=2e-3,
    layer_seconds=4e-4,
    prompt_seconds=3e-2,
)


def seen(prompts: int, tokens: int, length: float) -> Seen:
    widths = replace(QWEN3_VL_4B, num_layers=2 + prompts % 3, head=(tokens * 10, 300))
    setup = Setup(widths, 1000, 64)
    load = Workload(prompts, 4, tokens, (), Lengths(length, 1.2 * length**2, 1.5 * length))
    work = {"a": [load]}
    stage = Stage("s", 1, (RLVR("a", "x"),))
    return Seen(stage, setup, work, work, seconds_by_method(TRUE, setup, work, work))


def test_known_rates_are_found():
    steps = [seen(4, 20, 24), seen(9, 50, 30), seen(5, 200, 12), seen(30, 33, 60)]
    machine = fit(steps)
    for step in steps:
        found = seconds_by_method(machine, step.setup, step.sampled, step.asked)
        for method, seconds in step.seconds.items():
            assert found[method]["a"] == pytest.approx(seconds["a"], rel=1e-3), method

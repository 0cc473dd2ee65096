"""Bytes that branches exchange in a step of the laptop's configuration, and how little diagnostics
lose by exchanging so few."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from copd.branch import Branch
from copd.config import Config, load_config
from copd.engine import LocalEngine
from copd.recipes import build_plan
from copd.run.step import Position, take_step
from copd.types import Metrics

LAPTOP = Path(__file__).parents[2] / "configs" / "laptop.toml"

ROUNDING = 5e-4
LOWER_BOUND = 0.01
"""The parts of a KL over a teacher's 128 most probable tokens that may be missing over 16."""


@dataclass
class Traffic:
    """Bytes of requests and outputs by method, and scored tokens with the bytes of their names."""

    num_bytes: Counter[str] = field(default_factory=Counter)
    num_scored: int = 0
    num_named: int = 0


class WeighingEngine(LocalEngine):
    """Local branches; every message is packed as if it had to travel."""

    def __init__(self, config: Config, traffic: Traffic) -> None:
        super().__init__(config)
        self._traffic = traffic

    def call(
        self, method: Callable[[Branch, Any], Any], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        from copd.engine.actor import pack
        from copd.engine.host import Host

        outputs = super().call(method, inputs)
        for name, value in inputs.items():
            request = pack((Host.apply, (method, {name: value})))
            output = pack({name: outputs[name]})
            self._traffic.num_bytes[method.__name__] += len(request) + len(output)
            if method is Branch.score:
                self._traffic.num_scored += sum(len(each.token_ids) for each in value)
                self._traffic.num_named += sum(len(pack(each.problems)) for each in value)
        return outputs


def mutual_step(*overrides: str) -> tuple[Mapping[str, Metrics], Traffic]:
    """Run a mutual step of branches that differ somewhat."""
    config, traffic = load_config(LAPTOP, ["--engine.num_threads", "1", *overrides]), Traffic()
    engine, plan = WeighingEngine(config, traffic), build_plan(config)
    noise = torch.Generator().manual_seed(0)
    for name in plan.branches:
        engine.spawn(name, config.model.path)
        [weights] = engine.call(Branch.weights, {name: None}).values()
        moved = {
            key: w + 0.05 * w.std(correction=0) * torch.randn(w.shape, generator=noise)
            for key, w in weights.items()
        }
        engine.call(Branch.set_weights, {name: moved})
    return take_step(engine, config, Position(4, 1, plan.stages[1])).metrics, traffic


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_scored_token_takes_few_bytes_and_diagnostics_stay():
    pytest.importorskip("ray")
    default, traffic = mutual_step()
    scored = traffic.num_bytes["score"]
    assert traffic.num_scored > 6 * 1000
    assert 5 < (scored - traffic.num_named) / traffic.num_scored <= scored / traffic.num_scored
    assert scored / traffic.num_scored <= 16

    plenty, _ = mutual_step("--monitor.score_top_k", "128")
    errors = []
    for branch, metrics in default.items():
        for key, value in metrics.items():
            expected = plenty[branch][key]
            if key.endswith("/symmetric_kl"):
                errors.append(1 - value / expected)
            elif key.endswith("/entropy_gap"):
                assert value == pytest.approx(expected, abs=5e-4)
            else:
                assert value == expected, (branch, key)
    assert len(errors) == 6 and max(errors) > 0
    assert min(errors) >= -ROUNDING and max(errors) <= LOWER_BOUND

"""Steps: the same bits whether branches take turns or go on as soon as they can."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from copd.config import BASE, Config
from copd.engine import LocalEngine
from copd.recipes import build_plan
from copd.run.step import take_steps
from copd.run.windows import positions_of
from copd.types import TrainingBatch

DOMAINS = ("text", "image")
SETTINGS: dict[str, Any] = {
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in DOMAINS},
    "recipe": {"type": "copd", "rounds": 2, "rlvr_steps": 1, "opd_steps": 2},
    "rollout": {"num_prompts": 2, "group_size": 2, "max_completion_tokens": 6},
    "optimizer": {"learning_rate": 1e-3},
    "distill": {"type": "sampled", "extrapolation": 1.5},
    "engine": {"num_threads": 1},
}


class SideBySide(LocalEngine):
    """Branches of one process in threads: the order in which they come is the machine's."""

    is_parallel = True


def steps(engine: LocalEngine, config: Config) -> list[tuple[dict, dict]]:
    """Metrics and batches of all steps, with nothing between them."""
    plan = build_plan(config)
    for name in plan.branches:
        engine.spawn(name, "tiny")
    engine.spawn(BASE, "tiny", frozen=True)
    positions = positions_of(plan, range(1, plan.total_steps + 1), ())
    found = take_steps(engine, config, positions)
    return [(dict(result.metrics), dict(result.batches)) for result in found]


def numbers(batches: tuple[TrainingBatch, ...]) -> list[np.ndarray]:
    told = [batch.teacher.logprobs for batch in batches if batch.teacher is not None]
    base = [batch.ref_logprobs for batch in batches if batch.ref_logprobs is not None]
    return [*(batch.rollouts.token_ids for batch in batches), *told, *base]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_steps_have_the_same_bits_in_any_order(tmp_path: Path, max_staleness: int):
    recipe = {**SETTINGS["recipe"], "max_staleness": max_staleness}
    config = Config.model_validate({**SETTINGS, "recipe": recipe, "output_dir": tmp_path})
    in_turn = steps(LocalEngine(config), config)
    together = steps(SideBySide(config), config)
    for (metrics, batches), (others, other_lessons) in zip(in_turn, together, strict=True):
        assert list(metrics) == list(others) == list(DOMAINS)
        assert metrics == others
        for name in DOMAINS:
            own, other = numbers(batches[name]), numbers(other_lessons[name])
            assert len(own) == len(other)
            assert all(np.array_equal(a, b) for a, b in zip(own, other, strict=True))
    _, batches = in_turn[-1]
    assert [batch.ref_logprobs is not None for batch in batches["text"]] == [False, True]

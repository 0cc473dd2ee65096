"""Learning: the reward of an expert on arithmetic, and a short run against a recorded one."""

import json
from pathlib import Path

import numpy as np
import pytest

from copd.run import commands
from copd.storage import read_lines

GOLDEN = Path(__file__).parent / "golden_metrics.jsonl"
"""Written by `copd train` with the settings of conftest.py, on a CPU with one thread."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_reward_rises_on_arithmetic(make_config, tmp_path):
    config = make_config(
        tmp_path / "run",
        domains={"text": {"type": "digits", "modality": "text", "suites": ["chain", "story"]}},
        recipe={"type": "experts", "steps": 14},
        rollout={"num_prompts": 16, "group_size": 8, "max_completion_tokens": 40},
        optimizer={"learning_rate": 5e-4},
        checkpoint={"every": 14},
    )
    lines = list(read_lines(commands.train(config) / "metrics.jsonl"))
    rewards = [line["branches"]["text"]["rlvr/text/reward"] for line in lines]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2


def test_the_golden_run_is_reproduced(make_config, tmp_path):
    """On another CPU rounding changes these numbers by less than 1e-3."""
    root = commands.train(make_config(tmp_path / "run"))
    lines = list(read_lines(root / "metrics.jsonl"))
    golden = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert [line["cost"] for line in lines] == [line["cost"] for line in golden]
    for line, expected in zip(lines, golden, strict=True):
        assert line["branches"].keys() == expected["branches"].keys()
        for branch, metrics in expected["branches"].items():
            assert line["branches"][branch].keys() == metrics.keys()
            for key, value in metrics.items():
                if not key.endswith("train_inference_mismatch"):
                    got = line["branches"][branch][key]
                    assert got == pytest.approx(value, rel=1e-3, abs=1e-3), (branch, key)

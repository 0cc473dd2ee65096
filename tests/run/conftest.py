"""A small run with all stages: the embedded base on three domains."""

from collections.abc import Callable
from pathlib import Path

import pytest

from copd.config import Config

SETTINGS = {
    "seed": 3,
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {
        m: {"type": "digits", "modality": m, "num_train": 50} for m in ("text", "image", "video")
    },
    "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 2, "opd_steps": 1},
    "rollout": {"num_prompts": 2, "group_size": 2, "max_completion_tokens": 8},
    "optimizer": {"learning_rate": 1e-3},
    "evaluation": {"num_problems": 3, "num_samples": 2},
    "checkpoint": {"every": 1, "keep": 2},
    "engine": {"num_threads": 1},
}


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """Return a function that makes the configuration of a run, with some sections replaced."""

    def make(root: Path, **sections) -> Config:
        return Config.model_validate({**SETTINGS, "output_dir": root, **sections})

    return make

"""Branches on the embedded base, small enough for a test: real model, real problems."""

from collections.abc import Callable
from pathlib import Path

import pytest

from copd.config import Config
from copd.engine import LocalEngine

SETTINGS = {
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m} for m in ("text", "image", "video")},
    "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 2, "opd_steps": 1},
    "rollout": {"num_prompts": 4, "group_size": 4, "max_completion_tokens": 12},
    "optimizer": {"learning_rate": 1e-3},
    "evaluation": {"num_problems": 6, "num_samples": 2},
}


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A configuration with some sections replaced."""

    def make(**sections) -> Config:
        return Config.model_validate({"output_dir": tmp_path / "run", **SETTINGS, **sections})

    return make


@pytest.fixture
def make_engine(make_config) -> Callable[..., LocalEngine]:
    """A local engine with branches of these names."""

    def make(*names: str, **sections) -> LocalEngine:
        engine = LocalEngine(make_config(**sections))
        for name in names:
            engine.spawn(name, "tiny")
        return engine

    return make

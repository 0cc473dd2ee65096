"""A small diagnosis: the embedded base, and a copy of it with noise on its weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from copd.config import Config
from copd.lab.diagnose.findings import Diagnosis
from copd.lab.diagnose.measure import diagnosis_config, run_diagnosis
from copd.policy import Policy
from copd.policy.tiny import resolve
from copd.types import Split
from tests.lab.report.conftest import browser

__all__ = ["browser"]

SETTINGS = {
    "seed": 3,
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m} for m in ("text", "image")},
    "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 2, "opd_steps": 1},
    "rollout": {"max_completion_tokens": 12},
    "monitor": {"probe_top_k": 8192},
    "engine": {"num_threads": 1},
}


@pytest.fixture(scope="session")
def moved_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the embedded base with noise on all weights."""
    folder = tmp_path_factory.mktemp("moved")
    policy = Policy.load(resolve("tiny"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters().values():
            weight += 0.01 * torch.randn(weight.shape, generator=generator)
    policy.save(folder)
    return folder


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """Return a maker of diagnosis configurations, with some sections replaced."""

    def make(
        *domains: str, count: int = 4, num_samples: int = 2, split: Split = "validation", **sections
    ) -> Config:
        written = {"output_dir": tmp_path_factory.mktemp("run"), **SETTINGS, **sections}
        return diagnosis_config(
            Config.model_validate(written),
            domains=domains,
            split=split,
            count=count,
            num_samples=num_samples,
            say=print,
        )

    return make


@pytest.fixture(scope="session")
def diagnosed(settings, moved_folder: Path) -> Diagnosis:
    """Diagnose the noisy copy as the student of the base, on text and image."""
    return run_diagnosis(str(moved_folder), "tiny", settings(), split="validation", say=print)

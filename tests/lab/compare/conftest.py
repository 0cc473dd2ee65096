"""A study so small that a test can run all of it: two domains, experts and what builds on them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from copd.config import Config
from copd.config.study import Study, load_study
from copd.engine import create_engine
from copd.run.runner import Runner

STUDY = """
title = "A tiny study"
output_dir = "{root}"
seeds = [0, 1]

[common]
model = {{ path = "tiny", device = "cpu" }}
domains.text = {{ type = "digits", modality = "text", num_train = 50 }}
domains.image = {{ type = "digits", modality = "image", num_train = 50 }}
rollout = {{ num_prompts = 2, group_size = 2, max_completion_tokens = 8 }}
optimizer.learning_rate = 1e-3
evaluation = {{ num_problems = 4, num_samples = 1 }}
checkpoint = {{ every = 1, keep = 1 }}

[methods.experts]
recipe = {{ type = "experts", steps = 3 }}
merges.average = {{ type = "uniform" }}

[methods.opd]
label = "opd text <- image"
recipe = {{ type = "opd", student = "text", teacher = "image", expert_steps = 2, opd_steps = 2 }}
"""


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the tiny study, with a few more lines, and names its folder beside it."""

    def write(folder: Path | None = None, more: str = "", *, text: str = STUDY) -> Path:
        folder = folder or tmp_path_factory.mktemp("study")
        path = folder / "study.toml"
        path.write_text(text.format(root=folder / "out") + more)
        return path

    return write


@pytest.fixture
def make_study(study_file: Callable[..., Path]) -> Callable[..., Study]:
    """The tiny study with overrides and more lines."""

    def make(*overrides: str, more: str = "") -> Study:
        return load_study(study_file(more=more), overrides)

    return make


@pytest.fixture(scope="session")
def run_alone() -> Callable[[Config, Path], Path]:
    """Trains and measures in this process, in a folder; returns it."""

    def run(config: Config, folder: Path) -> Path:
        config = config.model_copy(update={"output_dir": folder})
        engine = create_engine(config)
        try:
            Runner(config, engine, Console(quiet=True)).run()
        finally:
            engine.close()
        return folder

    return run


@pytest.fixture(scope="session")
def end_state() -> Callable[[Path], dict[str, bytes]]:
    """All that a run leaves behind but its folder's name and the clock, by path."""

    def state(root: Path) -> dict[str, bytes]:
        lines = ("metrics.jsonl", "rollouts.jsonl", "eval.json", "plan.json")
        files = [root / name for name in lines]
        below = (root / "checkpoints", root / "final")
        files += [p for folder in below for p in sorted(folder.rglob("*")) if p.is_file()]
        return {str(p.relative_to(root)): p.read_bytes() for p in files}

    return state

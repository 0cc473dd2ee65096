"""The miniature that both sides of a benchmark load."""

from pathlib import Path

import pytest

from benchmarks.model import save_model


@pytest.fixture(scope="session")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniature")
    save_model(folder)
    return folder

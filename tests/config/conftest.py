"""A small configuration file, overrides, and the sentences of errors."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from copd.config import load_config

MINIMAL = """
[model]
path = "tiny"
[domains.text]
type = "digits"
modality = "text"
[domains.image]
type = "digits"
modality = "image"
[recipe]
type = "copd"
rounds = 2
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    return write(tmp_path, MINIMAL)


def write(folder: Path, text: str, name: str = "run.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str) -> list[str]:
    """Return the sentences of the error that loading raises."""
    with pytest.raises(ValueError) as caught:
        load_config(path, overrides)
    assert not isinstance(caught.value, ValidationError)
    return str(caught.value).splitlines()


def recipe(kind: str, **settings: object) -> tuple[str, str]:
    """Return the override that replaces the whole recipe."""
    return "--recipe", toml({"type": kind, **settings})


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)

"""The embedded base: a miniature Qwen3-VL that ships with the package.

`scripts/make_base.py` made it.
"""

from __future__ import annotations

from importlib import resources

NAME = "tiny"
"""What stands for the embedded base in `model.path`."""


def resolve(model: str) -> str:
    """The folder of the embedded base for "tiny"; anything else is a folder or hub name and stays
    as it is."""
    return str(resources.files("copd.policy.tiny").joinpath("model")) if model == NAME else model

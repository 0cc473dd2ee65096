"""The embedded base "tiny": a miniature Qwen3-VL, made by `scripts/make_base`."""

from importlib import resources


def resolve(model: str) -> str:
    """Return the folder of the embedded base for "tiny", and any other path or name unchanged."""
    return str(resources.files("copd.policy.tiny").joinpath("model")) if model == "tiny" else model

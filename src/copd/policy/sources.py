"""What a model path stands for: a folder, a GGUF file, an adapter of PEFT, or a hub name."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from transformers.utils import logging

_ADAPTER = "adapter_config.json"


def find_model(path: str | Path) -> str:
    """Resolve a model path to an existing folder or GGUF file, or to a hub name.

    Anything that looks like a folder must be one, so that a typing error is never downloaded.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file() or (folder / _ADAPTER).is_file():
        return str(folder)
    if folder.suffix == ".gguf" and folder.is_file():
        return str(folder)
    if found := sorted(folder.glob("*.gguf")):
        if len(found) > 1:
            raise ValueError(
                f"{folder} holds several GGUF files: got {', '.join(file.name for file in found)}, "
                "expected one. Name the file itself in model.path."
            )
        return str(found[0])
    owner, *rest = str(path).split("/")
    is_hub_name = (
        isinstance(path, str)
        and len(rest) <= 1
        and all(part and part[0] not in ".~" and "\\" not in part for part in (owner, *rest))
        and not Path(owner).exists()
    )
    if not is_hub_name:
        raise ValueError(
            f"model folder not found: got '{path}', expected a folder with a config.json, a GGUF "
            "file or an adapter of PEFT, or a hub name such as 'Qwen/Qwen3-0.6B'. Check the path."
        )
    return str(path)


def base_of(source: str) -> str | None:
    """Return the base model of an adapter folder, or None for a model."""
    settings = Path(source) / _ADAPTER
    if not settings.is_file() or (Path(source) / "config.json").is_file():
        return None
    return find_model(json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"])


def find_tokenizer(source: str) -> str:
    """Return where the tokenizer of a model is: an adapter without one uses that of its base."""
    base = base_of(source)
    if base is None or (Path(source) / "tokenizer_config.json").is_file():
        return source
    return base


def pretrained_arguments(source: str) -> dict[str, str]:
    """Return the arguments with which `from_pretrained` finds a resolved model path."""
    if not source.endswith(".gguf"):
        return {"pretrained_model_name_or_path": source}
    if find_spec("gguf") is None:
        raise ValueError(
            f"reading {source} needs the package gguf: got none. "
            "Install it with `pip install 'copd[gguf]'`."
        )
    file = Path(source)
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which would break up the live view of a run."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()

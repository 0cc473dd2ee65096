"""Where on this machine a model's files are. Asks no network, reads no weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import copd

_ADAPTER = "adapter_config.json"


def find_files(model: str) -> Path | None:
    """The folder or GGUF file of `model.path`: "tiny", a folder, a file, an adapter's base, or a
    hub name that was downloaded before; None for one that was not."""
    if model == "tiny":
        return Path(copd.__file__).parent / "policy" / "tiny" / "model"
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if (folder / _ADAPTER).is_file():
        settings = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
        return find_files(settings["base_model_name_or_path"])
    files = [folder] if folder.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    if files and files[0].is_file():
        return files[0]
    return _cached(model)


def _cached(name: str) -> Path | None:
    """The newest downloaded snapshot of a hub name, where huggingface_hub keeps it."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    root = os.environ.get("HF_HUB_CACHE", f"{home}/hub")
    folder = Path(root).expanduser() / f"models--{name.replace('/', '--')}" / "snapshots"
    found = [path.parent for path in folder.glob("*/config.json")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)

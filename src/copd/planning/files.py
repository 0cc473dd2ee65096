"""Find a model's files on this machine, and read sizes from their headers without any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import copd

Tensors = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by their names in transformers."""

_GGUF_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}


def find_files(model: str) -> Path | None:
    """Return the folder or GGUF file of `model.path`, or None if it is not on this machine.

    It may be "tiny", a folder, a file, an adapter's folder, or a hub name that was downloaded.
    """
    if model == "tiny":
        return Path(copd.__file__).parent / "policy" / "tiny" / "model"
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if (adapter := folder / "adapter_config.json").is_file():
        return find_files(read_json(adapter)["base_model_name_or_path"])
    files = [folder] if folder.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    return files[0] if files and files[0].is_file() else _find_download(model)


def _find_download(name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path
        return None
    return Path(found).parent if isinstance(found, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, "JSON", error) from error


def read_safetensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors in a folder's safetensors files; empty if it has none."""
    from huggingface_hub import get_local_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    try:
        files = get_local_safetensors_metadata(folder).files_metadata.values()
    except NotASafetensorsRepoError:
        return {}
    except (OSError, ValueError, TypeError, LookupError, SafetensorsParsingError) as error:
        raise ValueError(f"{str(error).rstrip('.')}. Download the model again.") from error
    return {name: tuple(info.shape) for file in files for name, info in file.tensors.items()}


def read_gguf(path: Path) -> dict[str, Any]:
    """Return the sizes that a GGUF file names, by the keys of a config.json."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ValueError(
            f"{path} is a GGUF file and the package gguf is not installed, so its sizes are not "
            "known. Run `pip install 'copd[gguf]'`."
        ) from error

    class Reader(GGUFReader):
        """A reader that stops at the end of the file, whatever lengths a damaged one names."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            values = super()._get(offset, dtype, count, override_order)
            if len(values) < count:
                raise ValueError("an early end")
            return values

    try:
        reader = Reader(path)
    except (OSError, ValueError, LookupError) as error:
        raise _damaged(path, "GGUF", error) from error
    values = {name: field.parts[field.data[0]] for name, field in reader.fields.items()}
    kind = bytes(values.get("general.architecture", b"")).decode(errors="replace")
    config = {
        key: int(values[f"{kind}.{name}"][0])
        for key, name in _GGUF_SIZES.items()
        if f"{kind}.{name}" in values
    }
    tensors = {tensor.name: tensor.shape for tensor in reader.tensors}
    if "token_embd.weight" in tensors:
        config["vocab_size"] = int(tensors["token_embd.weight"][-1])  # last axis first
    return {**config, "model_type": kind, "tie_word_embeddings": "output.weight" not in tensors}


def _damaged(path: Path, kind: str, error: Exception) -> ValueError:
    return ValueError(f"{path} must be a {kind} file: got {error}. Download the model again.")

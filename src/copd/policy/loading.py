"""A Hugging Face folder or hub name to a model. Knows no tokenizer and nothing copd computes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_model(path: str | Path) -> str:
    """What transformers should load: an existing folder, or a name that can only be the hub's.

    Anything that looks like a folder must be one, so that a typing error is never downloaded.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return str(folder)
    owner, *rest = str(path).split("/")
    is_hub_name = (
        isinstance(path, str)
        and len(rest) <= 1
        and all(part and part[0] not in ".~" and "\\" not in part for part in (owner, *rest))
        and not Path(owner).exists()
    )
    if not is_hub_name:
        raise ValueError(
            f"model folder not found: got '{path}', expected a folder with a config.json or a hub "
            "name such as 'Qwen/Qwen3-0.6B'. Check the path."
        )
    return str(path)


def load_model(source: str, *, dtype: str, device: str, trust_remote_code: bool) -> PreTrainedModel:
    """The causal or image-text-to-text model its configuration names, from safetensors only."""
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype: got '{dtype}', expected one of {', '.join(_DTYPES)}.")
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    sees = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    factory: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with quiet():
        model, report = factory.from_pretrained(
            source,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    _check_complete(source, sorted(report["missing_keys"]))
    return model.to(device)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, which would cut through a run's own."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _check_complete(source: str, missing: Sequence[str]) -> None:
    """transformers fills in weights a folder lacks with random ones."""
    if missing:
        raise ValueError(
            f"weights missing from '{source}': got none for {missing[0]} and {len(missing) - 1} "
            "others. Use a folder whose weights belong to its config.json."
        )

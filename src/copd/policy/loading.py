"""A Hugging Face folder or hub name to a model. Knows no tokenizer and nothing copd computes."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
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

_ADAPTER = "adapter_config.json"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_model(path: str | Path) -> str:
    """What should be loaded: an existing folder, a GGUF file, or a name that can only be the hub's.

    Anything that looks like a folder must be one, so that a typing error is never downloaded.
    """
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file() or (folder / _ADAPTER).is_file():
        return str(folder)
    if folder.suffix == ".gguf" and folder.is_file():
        return str(folder)
    if found := sorted(folder.glob("*.gguf")):
        return str(_the_only(found))
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


def load_model(source: str, *, dtype: str, device: str, trust_remote_code: bool) -> PreTrainedModel:
    """The causal or image-text-to-text model its configuration names, from safetensors or GGUF.

    An adapter of PEFT is merged into its base.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype: got '{dtype}', expected one of {', '.join(_DTYPES)}.")
    if (base := base_of(source)) is not None:
        settings: Any = {"device": device, "trust_remote_code": trust_remote_code}
        return _merge(load_model(base, dtype=dtype, **settings), source)
    sees = not source.endswith(".gguf") and _sees(source, trust_remote_code=trust_remote_code)
    factory: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with quiet():
        model, report = factory.from_pretrained(
            **where(source),
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    _check_complete(source, sorted(report["missing_keys"]))
    if source.endswith(".gguf"):
        _forget_quantization(model)
    return model.to(device)


def where(source: str) -> dict[str, str]:
    """A found model in the words of `from_pretrained`."""
    if not source.endswith(".gguf"):
        return {"pretrained_model_name_or_path": source}
    if find_spec("gguf") is None:
        raise ValueError(
            f"reading {source} needs the package gguf: got none. "
            "Install it with `pip install 'copd[gguf]'`."
        )
    file = Path(source)
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def find_tokenizer(source: str) -> str:
    """Where a found model's tokenizer is: an adapter may leave it to its base."""
    base = base_of(source)
    if base is None or (Path(source) / "tokenizer_config.json").is_file():
        return source
    return base


def _forget_quantization(model: Any) -> None:
    """What a GGUF file held is ordinary weights by now, to be trained and saved as such."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def base_of(source: str) -> str | None:
    """The model an adapter folder changes; none for a model."""
    settings = Path(source) / _ADAPTER
    if not settings.is_file() or (Path(source) / "config.json").is_file():
        return None
    return find_model(json.loads(settings.read_text(encoding="utf-8"))["base_model_name_or_path"])


def _merge(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    """The model with an adapter's change in its weights."""
    peft = import_peft(f"the adapter {adapter}")
    with warnings.catch_warnings():  # PEFT asks transformers by names it gives up
        warnings.simplefilter("ignore", FutureWarning)
        merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged.requires_grad_(True)


def import_peft(what: str) -> Any:
    """The package, or a sentence about who needs it."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            f"{what} needs the package peft: got none. Install it with `pip install 'copd[lora]'`."
        ) from error
    return peft


def _sees(source: str, *, trust_remote_code: bool) -> bool:
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _the_only(files: Sequence[Path]) -> Path:
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(
            f"{files[0].parent} holds several GGUF files: got {names}, expected one. "
            "Name the file itself in model.path."
        )
    return files[0]


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

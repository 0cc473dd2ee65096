"""Load models of transformers from folders, GGUF files and the hub, and merge PEFT adapters."""

import warnings
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from copd.policy.sources import base_of, no_progress_bars, pretrained_arguments

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(source: str, *, dtype: str, device: str, trust_remote_code: bool) -> PreTrainedModel:
    """Load the causal or image-text-to-text model that a source's configuration names.

    Weights come from safetensors or GGUF. An adapter of PEFT is merged into its base.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"unknown dtype: got '{dtype}', expected one of {', '.join(_DTYPES)}.")
    if (base := base_of(source)) is not None:
        model = load_model(base, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        return _merge_adapter(model, source)
    is_gguf = source.endswith(".gguf")
    factory: Any = AutoModelForCausalLM
    if not is_gguf:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            factory = AutoModelForImageTextToText
    with no_progress_bars():
        model, report = factory.from_pretrained(
            **pretrained_arguments(source),
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    if missing := sorted(report["missing_keys"]):  # transformers gives them random weights
        raise ValueError(
            f"weights missing from '{source}': got none for {missing[0]} and {len(missing) - 1} "
            "others. Use a folder whose weights belong to its config.json."
        )
    if is_gguf:  # its weights are dequantized by now, to be trained and saved as such
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    return model.to(device)


def _merge_adapter(model: PreTrainedModel, adapter: str) -> PreTrainedModel:
    peft = import_peft(f"the adapter {adapter}")
    with warnings.catch_warnings():  # PEFT uses names that transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return merged.requires_grad_(True)


def import_peft(needed_by: str) -> Any:
    """Import PEFT, or raise an error that says what needs it."""
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            f"{needed_by} needs the package peft: got none. "
            "Install it with `pip install 'copd[lora]'`."
        ) from error
    return peft

"""How large a model's parts are, from its config.json and the headers of its safetensors files.

Reads no weights; knows no torch, no training.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from copd.planning.gguf import read_gguf

_MOST_HEADER = 100_000_000
"""Bytes of a header, as safetensors itself bounds it."""

Tensors = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Tower:
    """A vision tower."""

    parameters: int
    depth: int
    hidden: int
    intermediate: int
    side: int
    """Pixels of a picture's side that make one visual token."""
    patches_per_token: int
    """Patches merged into one visual token."""
    values_per_patch: int
    """Numbers a patch is made of: channels, frames, pixels."""
    num_features: int
    """Embeddings and deepstack levels that a visual token carries into the text layers."""
    is_gated: bool
    """Qwen2.5-VL's feed-forward has a gate, and its norms are those of text layers."""


@dataclass(frozen=True)
class Shapes:
    """A text model, with a tower where it sees."""

    parameters: int
    """All of them, tied ones once."""
    layers: int
    hidden: int
    intermediate: int
    query: int
    """Width of all query heads together."""
    key: int
    """Width of all key heads together."""
    num_heads: int
    vocabulary: int
    has_head_norms: bool
    """Queries and keys are normalised, as in Qwen3."""
    is_tied: bool
    linears: Mapping[str, tuple[int, int]]
    """Linear layers of the text layers, as (out, in), by name."""
    largest: int
    """Numbers in the largest parameter."""
    tower: Tower | None

    @property
    def layer_parameters(self) -> int:
        """The weights of all linear layers of the text layers."""
        return sum(out * into for out, into in self.linears.values())


def read_shapes(files: Path) -> Shapes:
    """The shapes of a model folder or GGUF file: its own words for how it is built, and the headers
    of its files for the rest.

    Without safetensors files the parameters are those of a Qwen3 or Llama of the same sizes.
    """
    if files.is_file():
        return _checked_shapes(files, *read_gguf(files))
    path = files / "config.json"
    return _checked_shapes(path, _read_json(path), read_headers(files))


def _checked_shapes(path: Path, config: Mapping[str, Any], tensors: Tensors) -> Shapes:
    text = config.get("text_config", config)
    try:
        return _shapes(config, text, tensors or _usual_tensors(config, text))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must name the sizes of a decoder: got none for {error}. "
            "Choose a model like Qwen3, Llama or Qwen3-VL."
        ) from error


def read_headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a folder's safetensors files; none where there are none.

    A file begins with the length of its header, as 8 bytes, and the header, as JSON.
    """
    index = folder / "model.safetensors.index.json"
    names = (
        sorted({*_read_json(index)["weight_map"].values()})
        if index.is_file()
        else sorted(path.name for path in folder.glob("*.safetensors"))
    )
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        for tensor, entry in _read_header(folder / name).items():
            if tensor != "__metadata__":
                found[tensor] = tuple(entry["shape"])
    return found


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _MOST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            return json.loads(file.read(size))
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(
            f"{path} must be a safetensors file: got {error}. Download the model again."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} must be a JSON file: got {error}. Download the model again."
        ) from error


def _shapes(config: Mapping[str, Any], text: Mapping[str, Any], tensors: Tensors) -> Shapes:
    told = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    is_tied = bool(told) or "lm_head.weight" not in tensors
    own = {n: s for n, s in tensors.items() if not (is_tied and n.endswith("lm_head.weight"))}
    heads = text["num_attention_heads"]
    width = text.get("head_dim") or text["hidden_size"] // heads
    return Shapes(
        parameters=sum(map(math.prod, own.values())),
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        query=heads * width,
        key=(text.get("num_key_value_heads") or heads) * width,
        num_heads=heads,
        vocabulary=text["vocab_size"],
        has_head_norms=any(".q_norm." in name for name in own),
        is_tied=is_tied,
        linears={
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in own.items()
            if len(shape) == 2 and ".layers." in name and "visual." not in name
        },
        largest=max(map(math.prod, own.values())),
        tower=_tower(config, own),
    )


def _tower(config: Mapping[str, Any], tensors: Tensors) -> Tower | None:
    """The tower of a Qwen-VL; of other families only the text is read."""
    vision = config.get("vision_config")
    if vision is None or not str(config.get("model_type", "")).startswith("qwen"):
        return None
    own = [shape for name, shape in tensors.items() if "visual." in name]
    patch, frames = vision["patch_size"], vision.get("temporal_patch_size", 2)
    return Tower(
        parameters=sum(map(math.prod, own)),
        depth=vision["depth"],
        hidden=vision["hidden_size"],
        intermediate=vision["intermediate_size"],
        side=patch * vision.get("spatial_merge_size", 2),
        patches_per_token=vision.get("spatial_merge_size", 2) ** 2,
        values_per_patch=vision.get("in_channels", 3) * frames * patch**2,
        num_features=1 + len(vision.get("deepstack_visual_indexes", ())),
        is_gated=config["model_type"] == "qwen2_5_vl",
    )


def _usual_tensors(
    config: Mapping[str, Any], text: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """What a Qwen3 or Llama of these sizes consists of; its tower, where there is one."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    heads = text["num_attention_heads"]
    width = text.get("head_dim") or hidden // heads
    query, key = heads * width, (text.get("num_key_value_heads") or heads) * width
    layer: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    if str(text.get("model_type", config.get("model_type", ""))).startswith("qwen3"):
        layer |= {"self_attn.q_norm": (width,), "self_attn.k_norm": (width,)}
    embedding = (text["vocab_size"], hidden)
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": (hidden,),
        "lm_head.weight": embedding,
    }
    for index in range(text["num_hidden_layers"]):
        tensors |= {f"model.layers.{index}.{name}.weight": s for name, s in layer.items()}
    return tensors

"""The sizes of a model's text layers, vision tower, vocabulary head and adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from copd.config.sections import LoraConfig
from copd.planning.files import Tensors, find_files, read_gguf, read_json, read_safetensors

Matrix = tuple[int, int]
"""Output and input width of a linear layer."""


@dataclass(frozen=True)
class Tower:
    """A vision tower of width D whose mergers join patches to visual tokens."""

    depth: int
    hidden: int
    intermediate: int
    output: int
    """Width of a visual token."""
    side: int
    """Pixels along the side of a visual token."""
    patches_per_token: int
    values_per_patch: int
    """Channels, frames and pixels of a patch, multiplied."""
    num_features: int
    """Features of a visual token: its embedding and deepstack levels, a merger for each."""
    is_gated: bool
    """Feed-forward layers have a gate and norms are those of text layers, as in Qwen2.5-VL."""
    parameters: int = 0

    @property
    def block_weights(self) -> int:
        """Weights of the matrices of one layer, `4 D^2 + 2 D I`, or `3 D I` with a gate."""
        matrices = 3 if self.is_gated else 2
        return 4 * self.hidden**2 + matrices * self.hidden * self.intermediate

    @property
    def merger_weights(self) -> int:
        """Weights of the matrices of all mergers."""
        merged = self.hidden * self.patches_per_token
        return self.num_features * merged * (merged + self.output)

    @property
    def patch_weights(self) -> int:
        """Weights of the patch embedding."""
        return self.values_per_patch * self.hidden


@dataclass(frozen=True)
class Shapes:
    """A text model, with a vision tower if it has one."""

    parameters: int
    """All parameters, tied ones once."""
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
    """The vocabulary head is the embedding matrix."""
    linears: Mapping[str, Matrix]
    """Linear layers of the text layers by name."""
    largest: int
    """Weights of the largest parameter."""
    tower: Tower | None = None

    @property
    def layer_parameters(self) -> int:
        """Weights of all linear layers of the text layers."""
        return sum(map(math.prod, self.linears.values()))

    @property
    def head(self) -> int:
        """Weights of the vocabulary head, `V D`."""
        return self.vocabulary * self.hidden

    @property
    def tower_parameters(self) -> int:
        """Parameters of the vision tower; 0 without one."""
        return self.tower.parameters if self.tower else 0

    def adapted(self, lora: LoraConfig) -> list[Matrix]:
        """Return the linear layers that have adapters."""
        targets = lora.target_modules
        return [
            matrix
            for name, matrix in self.linears.items()
            if targets == "all-linear" or name.split(".")[-1] in targets or name.endswith(targets)
        ]


def find_shapes(model: str) -> Shapes:
    """Return the shapes of `model.path`; those of the paper's model also if it is not here."""
    files = find_files(model)
    if files is not None:
        return read_shapes(files)
    if model == "Qwen/Qwen3-VL-4B-Instruct":
        return QWEN3_VL_4B
    raise ValueError(
        f"{model!r} is not on this machine, so its sizes are not known. Download it, or name its "
        "folder in model.path."
    )


def read_shapes(files: Path) -> Shapes:
    """Read the shapes of a model folder or GGUF file.

    Without safetensors files they are those of a Qwen3, Qwen3-VL or Llama of the sizes that are
    named.
    """
    path = files if files.is_file() else files / "config.json"
    config = read_gguf(files) if files.is_file() else read_json(path)
    tensors = {} if files.is_file() else read_safetensors(files)
    try:
        return build_shapes(config, tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must name the sizes of a decoder: got none for {error}. "
            "Choose a model like Qwen3, Llama or Qwen3-VL."
        ) from error


def build_shapes(config: Mapping[str, Any], tensors: Tensors | None = None) -> Shapes:
    """Build shapes from a config.json and, if there are weights, the shapes of their tensors."""
    text = config.get("text_config", config)
    given = tensors or _usual_tensors(config, text)
    is_tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    is_tied = is_tied or "lm_head.weight" not in given
    own = {n: s for n, s in given.items() if not (is_tied and n.endswith("lm_head.weight"))}
    heads, width = text["num_attention_heads"], _head_width(text)
    tower = _tower(config, text, own)
    missing = tower.parameters if tower and not tensors else 0
    return Shapes(
        parameters=sum(map(math.prod, own.values())) + missing,
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
        tower=tower,
    )


def _head_width(text: Mapping[str, Any]) -> int:
    return text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]


def _tower(config: Mapping[str, Any], text: Mapping[str, Any], tensors: Tensors) -> Tower | None:
    """Return the tower of a Qwen-VL; of other families only the text is read."""
    vision = config.get("vision_config")
    if vision is None or not str(config.get("model_type", "")).startswith("qwen"):
        return None
    patch, merge = vision["patch_size"], vision.get("spatial_merge_size", 2)
    pixels = vision.get("temporal_patch_size", 2) * patch**2
    tower = Tower(
        depth=vision["depth"],
        hidden=vision["hidden_size"],
        intermediate=vision["intermediate_size"],
        output=text["hidden_size"],
        side=patch * merge,
        patches_per_token=merge**2,
        values_per_patch=vision.get("in_channels", 3) * pixels,
        num_features=1 + len(vision.get("deepstack_visual_indexes", ())),
        is_gated=config["model_type"] == "qwen2_5_vl",
    )
    matrices = tower.patch_weights + tower.depth * tower.block_weights + tower.merger_weights
    sizes = [math.prod(shape) for name, shape in tensors.items() if "visual." in name]
    return replace(tower, parameters=sum(sizes) or matrices)


def _usual_tensors(config: Mapping[str, Any], text: Mapping[str, Any]) -> Tensors:
    """Return what a Qwen3 or Llama of these sizes consists of, without its tower."""
    hidden, inner, width = text["hidden_size"], text["intermediate_size"], _head_width(text)
    heads = text["num_attention_heads"]
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
    outer = {"model.embed_tokens": embedding, "model.norm": (hidden,), "lm_head": embedding}
    layers = {
        f"model.layers.{i}.{name}": shape
        for i in range(text["num_hidden_layers"])
        for name, shape in layer.items()
    }
    return {f"{name}.weight": shape for name, shape in (outer | layers).items()}


QWEN3_VL_4B = build_shapes(
    {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": True,
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151_936,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "depth": 24,
            "patch_size": 16,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    }
)
"""The paper's model, Qwen3-VL-4B-Instruct, by its config.json."""

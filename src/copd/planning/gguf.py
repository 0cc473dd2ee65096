"""The header of a GGUF file: how its model is built, and the shapes of its tensors.

Reads no weights. A header is a list of key-value pairs and a list of tensors, little-endian
(github.com/ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MOST = 2**24
"""Entries of a list and bytes of a string; a larger number means a damaged file."""

_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """A config in transformers' words, and shapes by transformers' names."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ValueError("another kind of file")
            _, num_tensors, num_values = struct.unpack("<IQQ", file.read(20))
            values = dict(_entry(file) for _ in range(_checked(num_values)))
            tensors = dict(_tensor(file) for _ in range(_checked(num_tensors)))
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ValueError(
            f"{path} must be a GGUF file: got {error}. Download the model again."
        ) from error
    return _config(values, tensors), tensors


def _config(values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    kind = values.get("general.architecture")

    def of(key: str) -> Any:
        return values.get(f"{kind}.{key}")

    wanted = {
        "num_hidden_layers": of("block_count"),
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": of("attention.key_length"),
        "vocab_size": tensors.get("model.embed_tokens.weight", (None,))[0],
    }
    return {
        **{key: value for key, value in wanted.items() if value is not None},
        "model_type": kind,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }


def _entry(file: BinaryIO) -> tuple[str, Any]:
    name = _string(file)
    (kind,) = struct.unpack("<I", file.read(4))
    return name, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        of, count = struct.unpack("<IQ", file.read(12))
        return [_value(file, of) for _ in range(_checked(count))]
    code = _SCALARS[kind]
    return struct.unpack(code, file.read(struct.calcsize(code)))[0]


def _tensor(file: BinaryIO) -> tuple[str, tuple[int, ...]]:
    """A tensor's name as transformers has it, and its shape; a file has the last axis first."""
    name = _string(file)
    (num_axes,) = struct.unpack("<I", file.read(4))
    axes = struct.unpack(f"<{num_axes}Q", file.read(8 * num_axes))
    file.read(12)  # kind and offset
    return _name(name), axes[::-1]


def _name(name: str) -> str:
    top = {"token_embd.weight": "model.embed_tokens.weight", "output.weight": "lm_head.weight"}
    if not name.startswith("blk."):
        return top.get(name, name)
    _, layer, part, *rest = name.split(".")
    return ".".join(["model.layers", layer, _NAMES.get(part, part), *rest])


def _string(file: BinaryIO) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    return file.read(_checked(size)).decode("utf-8", errors="replace")


def _checked(count: int) -> int:
    if count > _MOST:
        raise ValueError(f"a list of {count} entries")
    return count

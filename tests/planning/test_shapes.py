"""Shapes of a model from headers, against numbers worked out by hand."""

import json
import struct
from pathlib import Path

import pytest

from copd.planning.find import find_files
from copd.planning.shapes import read_headers, read_shapes

TEXT = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 3,
    "vocab_size": 10,
    "tie_word_embeddings": True,
}


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file with a header and no weights."""
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
        for name, shape in shapes.items()
    }
    words = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(words)) + words)


def test_sizes_without_weights(tmp_path: Path):
    # a layer: q 12*8, k and v 6*8 each, o 8*12, gate, up and down 8*12 each, norms 2*8, heads 2*3
    (tmp_path / "config.json").write_text(json.dumps(TEXT))
    shapes = read_shapes(tmp_path)
    assert shapes.parameters == 2 * (96 + 48 + 48 + 96 + 3 * 96 + 16 + 6) + 80 + 8
    assert (shapes.query, shapes.key, shapes.largest) == (12, 6, 96)
    assert shapes.layer_parameters == 2 * (96 + 48 + 48 + 96 + 3 * 96)
    assert shapes.has_head_norms and shapes.is_tied and shapes.tower is None


def test_headers_of_all_shards_are_read(tmp_path: Path):
    write_safetensors(tmp_path / "a.safetensors", {"x": (2, 3)})
    write_safetensors(tmp_path / "b.safetensors", {"y": (5,)})
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_headers(tmp_path) == {"x": (2, 3), "y": (5,)}


def test_a_head_in_the_file_counts_unless_it_is_tied(tmp_path: Path):
    tensors = {"model.embed_tokens.weight": (10, 8), "lm_head.weight": (10, 8)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    for is_tied, parameters in ((True, 80), (False, 160)):
        config = {**TEXT, "tie_word_embeddings": is_tied}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert read_shapes(tmp_path).parameters == parameters


def test_the_embedded_base_has_a_tower():
    files = find_files("tiny")
    assert files is not None
    tower = read_shapes(files).tower
    assert tower is not None
    assert (tower.depth, tower.side, tower.patches_per_token, tower.num_features) == (2, 16, 4, 2)
    assert tower.values_per_patch == 3 * 2 * 8 * 8


def test_shapes_are_those_transformers_builds(
    reading_folders: dict[str, Path], seeing_folder: Path
):
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kinds = [
        *((folder, AutoModelForCausalLM) for folder in reading_folders.values()),
        (seeing_folder, AutoModelForImageTextToText),
    ]
    for folder, factory in kinds:
        model = factory.from_pretrained(folder)
        assert read_shapes(folder).parameters == sum(p.numel() for p in model.parameters())


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def test_a_gguf_header(tmp_path: Path):
    numbers = {
        "block_count": 1,
        "embedding_length": 8,
        "feed_forward_length": 12,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
    }
    values = [gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("llama")]
    values += [gguf_string(f"llama.{k}") + struct.pack("<II", 4, n) for k, n in numbers.items()]
    words = struct.pack("<IIQ", 9, 8, 2) + gguf_string("a") + gguf_string("b")
    values.append(gguf_string("tokenizer.ggml.tokens") + words)
    tensors = {
        "token_embd.weight": (8, 10),
        "blk.0.attn_q.weight": (8, 8),
        "output_norm.weight": (8,),
    }
    entries = [
        gguf_string(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, 0, 0)
        for name, axes in tensors.items()
    ]
    path = tmp_path / "model.gguf"
    counts = struct.pack("<IQQ", 3, len(entries), len(values))
    path.write_bytes(b"GGUF" + counts + b"".join(values) + b"".join(entries))
    shapes = read_shapes(path)
    assert find_files(str(tmp_path)) == path
    assert (shapes.parameters, shapes.vocabulary, shapes.query, shapes.key) == (152, 10, 8, 4)
    assert shapes.is_tied
    assert shapes.linears == {"model.layers.0.self_attn.q_proj": (8, 8)}


@pytest.mark.parametrize("content", [b"", b"GGU", b"GGUF", b"GGUF" + b"\xff" * 40])
def test_a_damaged_gguf_file_is_a_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="Download the model again"):
        read_shapes(tmp_path / "x.gguf")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 5) + b"abcde"])
def test_a_damaged_safetensors_file_is_a_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="Download the model again"):
        read_headers(tmp_path)


def test_another_kind_of_model_is_a_sentence(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="Choose a model like Qwen3"):
        read_shapes(tmp_path)


def test_a_hub_name_is_found_where_it_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert find_files("owner/name") is None
    folder = tmp_path / "models--owner--name" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert find_files("owner/name") == folder

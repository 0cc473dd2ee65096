"""Shapes of a model, against numbers worked out by hand."""

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from copd.config.sections import LoraConfig
from copd.planning.files import find_files, read_safetensors
from copd.planning.shapes import QWEN3_VL_4B, build_shapes, find_shapes, read_shapes

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
    save_file({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}, path)


def test_sizes_without_weights(tmp_path: Path):
    # a layer: q 12*8, k and v 6*8 each, o 8*12, gate, up and down 8*12 each, norms 2*8, heads 2*3
    (tmp_path / "config.json").write_text(json.dumps(TEXT))
    shapes = read_shapes(tmp_path)
    assert shapes.parameters == 2 * (96 + 48 + 48 + 96 + 3 * 96 + 16 + 6) + 80 + 8
    assert (shapes.query, shapes.key, shapes.largest) == (12, 6, 96)
    assert shapes.layer_parameters == 2 * (96 + 48 + 48 + 96 + 3 * 96)
    assert shapes.has_head_norms and shapes.is_tied and shapes.tower is None


def test_the_headers_of_all_shards_are_read(tmp_path: Path):
    write_safetensors(tmp_path / "a.safetensors", {"x": (2, 3)})
    write_safetensors(tmp_path / "b.safetensors", {"y": (5,)})
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_safetensors(tmp_path) == {"x": (2, 3), "y": (5,)}


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


def write_gguf(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(12)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "b"])
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_header(tmp_path: Path):
    path, embeddings = tmp_path / "model.gguf", {"token_embd.weight": (10, 8)}
    write_gguf(path, embeddings)
    shapes = read_shapes(path)
    assert find_files(str(tmp_path)) == path
    assert (shapes.vocabulary, shapes.query, shapes.key) == (10, 8, 4)
    assert shapes.is_tied and not shapes.has_head_norms
    # q and o 8*8, k and v 4*8, gate, up and down 8*12, norms 2*8; embeddings and the last norm
    assert shapes.parameters == 2 * 64 + 2 * 32 + 3 * 96 + 16 + 80 + 8
    assert shapes.linears["model.layers.0.self_attn.q_proj"] == (8, 8)
    write_gguf(path, {**embeddings, "output.weight": (10, 8)})
    assert read_shapes(path).parameters == shapes.parameters + 80


def test_a_gguf_file_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ValueError, match=r"x\.gguf is a GGUF file .* Run `pip install 'copd"):
        read_shapes(tmp_path / "x.gguf")


# a list of 2^60 bytes under the key "a"
_ENDLESS = struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**60)


@pytest.mark.parametrize(
    "content", [b"", b"GGU", b"GGUF", b"GGUF" + b"\xff" * 40, b"GGUF" + _ENDLESS]
)
def test_a_damaged_gguf_file_is_a_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ValueError, match="Download the model again"):
        read_shapes(tmp_path / "x.gguf")


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 5) + b"abcde"])
def test_a_damaged_safetensors_file_is_a_sentence(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="Download the model again"):
        read_safetensors(tmp_path)


def test_another_kind_of_model_is_a_sentence(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="Choose a model like Qwen3"):
        read_shapes(tmp_path)


def test_a_hub_name_is_found_where_it_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_files("owner/name") is None
    model = tmp_path / "models--owner--name"
    folder = model / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("1")
    assert find_files("owner/name") == folder


def test_the_paper_s_model_is_known_without_its_files(monkeypatch: pytest.MonkeyPatch):
    """4.44 B weights by its model card; 36 layers with 8 heads of 128 for keys and for values."""
    monkeypatch.setattr("copd.planning.shapes.find_files", lambda model: None)
    assert find_shapes("Qwen/Qwen3-VL-4B-Instruct") == QWEN3_VL_4B
    assert QWEN3_VL_4B.parameters == pytest.approx(4.4378e9, rel=1e-3)
    assert (QWEN3_VL_4B.layers, QWEN3_VL_4B.key) == (36, 8 * 128)
    with pytest.raises(ValueError, match=r"name its folder in model\.path"):
        find_shapes("owner/name")


def test_the_matrices_of_a_tower_are_those_of_the_model(seeing_folder: Path):
    """Biases, norms and positions come on top of them."""
    tower, tensors = read_shapes(seeing_folder).tower, read_safetensors(seeing_folder)
    assert tower is not None
    sizes = [np.prod(shape) for n, shape in tensors.items() if "visual." in n and "pos_" not in n]
    matrices = tower.patch_weights + tower.depth * tower.block_weights + tower.merger_weights
    many = [np.prod(s) for n, s in tensors.items() if "visual." in n and len(s) > 1]
    positions = [np.prod(s) for n, s in tensors.items() if "visual.pos_embed" in n]
    assert matrices == sum(many) - sum(positions) < sum(sizes) < tower.parameters


def test_adapters_are_on_the_layers_that_are_named():
    config = {**TEXT, "num_hidden_layers": 1}
    shapes = build_shapes(config)
    assert len(shapes.adapted(LoraConfig())) == 7
    assert shapes.adapted(LoraConfig(target_modules=("up_proj",))) == [(12, 8)]

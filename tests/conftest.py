"""Tiny random models with a character tokenizer, built in code: what any test may load."""

import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from copd.policy.rendering.processors import (
    FrameVideoProcessor,
    TorchVideoProcessor,
    build_processor,
    save_processor,
)

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))
PADDED_VOCABULARY = 112
"""A few rows more than the tokenizer has tokens, as real models have."""

SEEING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZE = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 16}
PATCHES: dict[str, Any] = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
COLOURS: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def character_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """One token per character, one per control string, one per timestamp of a few."""
    vocabulary = {character: index for index, character in enumerate(CHARACTERS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROL])
    tokenizer.add_tokens([f"<{time} seconds>" for time in ("0.2", "1.2")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast


def token_id(text: str) -> int:
    """The id of a control string."""
    return len(CHARACTERS) + CONTROL.index(text)


def seeing_model() -> Qwen3VLForConditionalGeneration:
    """A random Qwen3-VL whose weights are large enough for every input to matter."""
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": PADDED_VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [3, 3, 2],
            },
            "initializer_range": 0.15,
            "pad_token_id": None,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 2,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.15,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config)


def wide_model() -> Qwen3VLForConditionalGeneration:
    """The same with heads as wide as vLLM's kernels ask for, many tokens that end a completion, and
    control tokens it would often write."""
    config: Any = seeing_model().config
    rope = {**config.text_config.rope_parameters, "mrope_section": [12, 10, 10]}
    config.text_config.update(
        {"hidden_size": 128, "num_attention_heads": 2, "head_dim": 64, "rope_parameters": rope}
    )
    config.vision_config.update({"hidden_size": 128, "out_hidden_size": 128})
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight[len(CHARACTERS) :] *= 3
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [token_id("<|im_end|>"), *range(6)]
    return model


def seeing_25_model() -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL; its tower looks through windows of 2 x 2 merged patches."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": PADDED_VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
            },
            "initializer_range": 0.15,
            "bos_token_id": None,
            "eos_token_id": token_id("<|im_end|>"),
            "pad_token_id": None,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 64,
            "tokens_per_second": 2,
            "initializer_range": 0.15,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(config)


def reading_model(kind: str) -> PreTrainedModel:
    """A random Llama or Qwen3."""
    sizes = {
        "vocab_size": PADDED_VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "pad_token_id": None,
        "eos_token_id": token_id("<|im_end|>"),
    }
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**sizes))
    return Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=True))


def save_seeing(folder: Path, model: PreTrainedModel | None = None) -> None:
    """A complete Qwen3-VL folder."""
    (model or seeing_model()).save_pretrained(folder)
    processor = build_processor(
        character_tokenizer(SEEING_TEMPLATE),
        Qwen2VLImageProcessorPil(**PATCHES, **COLOURS, size=SIZE),
        TorchVideoProcessor(**PATCHES, **COLOURS, size=SIZE),
    )
    save_processor(processor, folder)


def save_seeing_25(folder: Path) -> None:
    """A complete Qwen2.5-VL folder."""
    seeing_25_model().save_pretrained(folder)
    processor = build_processor(
        character_tokenizer(SEEING_TEMPLATE),
        Qwen2VLImageProcessorPil(**PATCHES, **COLOURS, size=SIZE),
        FrameVideoProcessor(**PATCHES, **COLOURS, size=SIZE),
    )
    save_processor(processor, folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one; a compiler's warnings there are no errors."""
    absent = not torch.cuda.is_available()
    for item in items:
        if item.get_closest_marker("vllm"):
            reason = "needs vLLM (copd[vllm])"
            item.add_marker(pytest.mark.skipif(find_spec("vllm") is None, reason=reason))
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skipif(absent, reason="needs a CUDA device"))
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def seeing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen3-VL that reads text, images and videos."""
    folder = tmp_path_factory.mktemp("seeing")
    save_seeing(folder)
    return folder


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, of sizes that vLLM runs."""
    folder = tmp_path_factory.mktemp("wide")
    save_seeing(folder, wide_model())
    return folder


@pytest.fixture(scope="session")
def seeing_25_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Qwen2.5-VL that reads text, images and videos."""
    folder = tmp_path_factory.mktemp("seeing_25")
    save_seeing_25(folder)
    return folder


@pytest.fixture(scope="session")
def reading_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random text models: `llama`, and `qwen3` with tied embeddings."""
    folders = {}
    for kind in ("llama", "qwen3"):
        folder = tmp_path_factory.mktemp(kind)
        reading_model(kind).save_pretrained(folder)
        character_tokenizer(READING_TEMPLATE).save_pretrained(folder)
        folders[kind] = folder
    return folders


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a given size, or again with another size; only root can mount one."""
    disk = tmp_path / "disk"

    def mount(size: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if disk.is_mount():
            words = ["mount", "-o", f"remount,size={size}", str(disk)]
        disk.mkdir(exist_ok=True)
        if os.geteuid() != 0 or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)

"""Random Qwen3-VL models as Hugging Face folders, and the miniature that both sides load."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from copd.policy.rendering.processors import TorchVideoProcessor, build_processor, save_processor

CONTROL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_MODELS = Path(__file__).with_name("models.json")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per character; a time stamp of a frame is 13 tokens."""
    vocabulary = [*CONTROL, "\n", *map(chr, range(32, 127))]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_model(folder: Path, name: str = "miniature") -> int:
    """Save a model of models.json, always with the same weights; return their number."""
    sizes = json.loads(_MODELS.read_text(encoding="utf-8"))[name]
    text = {**sizes["text"], "rope_parameters": rotary(sizes["theta"], sizes["sections"])}
    return save_random(folder, text=text, vision=sizes["vision"], patch=sizes["patch"])


def rotary(theta: float, sections: Sequence[int]) -> dict[str, Any]:
    """Return rotary settings with sections for time, height and width."""
    return {
        "rope_type": "default",
        "rope_theta": theta,
        "mrope_section": list(sections),
        "mrope_interleaved": True,
    }


def save_random(folder: Path, *, text: dict[str, Any], vision: dict[str, Any], patch: int) -> int:
    """Save a random model of these sizes with its processor; return its number of weights."""
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer, text, vision, patch))
    limits = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 1024 * 1024}
    save(model, tokenizer, folder, limits=limits, clip_limits=limits)
    return sum(parameter.numel() for parameter in model.parameters())


def build_config(
    tokenizer: PreTrainedTokenizerFast, text: dict[str, Any], vision: dict[str, Any], patch: int
) -> Qwen3VLConfig:
    """Build a configuration of these sizes with the token ids of a tokenizer."""
    ids = tokenizer.get_vocab()
    return Qwen3VLConfig(
        text_config={
            **text,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
            "tie_word_embeddings": True,
        },
        vision_config={
            **vision,
            "patch_size": patch,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def save(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    limits: dict[str, int],
    clip_limits: dict[str, int],
) -> None:
    """Save model, tokenizer and processor; `limits` bound the pixels of a picture and of a clip."""
    assert model.generation_config is not None, "a model that generates has one"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    vision: Any = model.config.vision_config
    settings: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    images = Qwen2VLImageProcessorPil(size=limits, **settings)
    videos = TorchVideoProcessor(size=clip_limits, **settings)
    save_processor(build_processor(tokenizer, images, videos), folder)

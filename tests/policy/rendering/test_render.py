"""From messages to prompts: the template's text, placeholders, and errors."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers.video_utils import VideoMetadata

from copd.policy import Policy
from copd.policy.rendering.render import plain_template
from copd.types import ContentPart, Image, Message, Text, Video
from tests.policy.conftest import KINDS, MESSAGES

PICTURE = Image(np.zeros((16, 32, 3), dtype=np.uint8))
CLIP = Video(np.zeros((4, 16, 16, 3), dtype=np.uint8), fps=2.0)


def test_text_goes_through_the_template(seeing, reading):
    messages = [
        Message("system", (Text("Be brief."),)),
        Message("user", (Text("1 + 1"), Text(" = ?"))),
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1 + 1 = ?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    for policy in (seeing, *reading.values()):
        prompt = policy.render(messages)
        assert policy.tokenizer.decode(prompt.input_ids) == expected
        assert prompt.input_ids.dtype == torch.int64
        assert prompt.media == {}


def test_media_stay_at_their_place_in_the_message(seeing):
    prompt = seeing.render([Message("user", (Text("a"), PICTURE, Text("b"), CLIP))])
    image = "<|vision_start|><|image_pad|><|image_pad|><|vision_end|>"
    block = "<|vision_start|><|video_pad|><|vision_end|>"
    clip = f"<|vision_start|><0.2 seconds>{block}<1.2 seconds>{block}<|vision_end|>"
    assert seeing.tokenizer.decode(prompt.input_ids) == (
        f"<|im_start|>user\na{image}b{clip}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert {name: tuple(tensor.shape) for name, tensor in prompt.media.items()} == {
        "pixel_values": (8, 384),
        "image_grid_thw": (1, 3),
        "pixel_values_videos": (8, 384),
        "video_grid_thw": (1, 3),
        "mm_token_type_ids": tuple(prompt.input_ids.shape),
    }


def test_modalities(seeing, reading):
    assert seeing.modalities == {"text", "image", "video"}
    assert reading["qwen3"].modalities == {"text"}


def alone(policy: Policy, parts: tuple[ContentPart, ...]) -> dict[str, torch.Tensor]:
    """Return what the processor makes of one prompt."""
    assert policy.renderer.processor is not None
    content: Any = [{"type": type(part).__name__.lower()} | vars(part) for part in parts]
    inputs: dict[str, Any] = {
        "text": policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        ),
        "text_kwargs": {"return_tensors": "pt"},
        "images_kwargs": {"input_data_format": "channels_last"},
    }
    images = [part.pixels for part in parts if isinstance(part, Image)]
    clips = [part for part in parts if isinstance(part, Video)]
    times = [
        VideoMetadata(len(c.frames), c.fps, frames_indices=[*range(len(c.frames))]) for c in clips
    ]
    if images:
        inputs["images"] = images
    if clips:
        inputs["videos"] = [clip.frames for clip in clips]
        inputs["videos_kwargs"] = {
            "input_data_format": "channels_last",
            "do_sample_frames": False,
            "video_metadata": times,
        }
    return dict(policy.renderer.processor(**inputs))


@pytest.mark.parametrize("folder", ["seeing_folder", "seeing_25_folder"])
def test_many_at_once_are_rendered_as_one_by_one(request: pytest.FixtureRequest, folder: str):
    policy = Policy.load(request.getfixturevalue(folder))
    everything = [parts for kind in KINDS for parts in MESSAGES[kind]]
    together = policy.render_all([[Message("user", parts)] for parts in everything])
    for parts, prompt in zip(everything, together, strict=True):
        one = policy.render([Message("user", parts)])
        expected = alone(policy, parts)
        for found in (prompt, one):
            assert torch.equal(found.input_ids, expected["input_ids"][0])
            names = {name for name in expected if name not in ("input_ids", "attention_mask")}
            assert found.media.keys() == (names if len(parts) > 1 else set())
            for name, values in found.media.items():
                plain = torch.as_tensor(expected[name])
                plain = plain[0] if name == "mm_token_type_ids" else plain
                assert torch.equal(values, plain)
                assert values.dtype == plain.dtype
                # a view would hold the pixels of other prompts in memory
                assert values.untyped_storage().nbytes() == values.nbytes


@pytest.mark.parametrize("part", [PICTURE, CLIP], ids=["image", "video"])
def test_a_text_model_refuses_images_and_videos(reading, part):
    with pytest.raises(ValueError, match="Choose a model of qwen2_5_vl"):
        reading["llama"].render([Message("user", (Text("What?"), part))])


def without_template(source: Path, folder: Path) -> Path:
    for file in source.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file)
    return folder


def test_a_missing_template_is_named(seeing_folder, tmp_path: Path):
    with pytest.raises(ValueError, match="Add that file"):
        Policy.load(without_template(seeing_folder, tmp_path)).render(
            [Message("user", (Text("Hi"),))]
        )


def test_a_base_model_without_a_template_reads_the_text_of_messages(
    reading_folders, tmp_path: Path
):
    (tmp_path / "base").mkdir()
    policy = Policy.load(without_template(reading_folders["llama"], tmp_path / "base"))
    messages = [Message("system", (Text("Add."),)), Message("user", (Text("1+2="),))]
    prompt = policy.render(messages)
    assert policy.tokenizer.decode(prompt.input_ids) == "Add.\n1+2=\n"
    policy.save(tmp_path / "saved")
    again = Policy.load(tmp_path / "saved").render(messages)
    assert torch.equal(again.input_ids, prompt.input_ids)


def test_the_plain_template_starts_with_the_tokenizers_first_token(reading):
    tokenizer = copy.deepcopy(reading["llama"].tokenizer)
    assert "bos_token" not in plain_template(tokenizer)
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = plain_template(tokenizer)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>Hi\n"


def test_no_pad_token_is_needed(reading_folders, tmp_path: Path):
    for file in reading_folders["qwen3"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    policy = Policy.load(tmp_path)
    assert policy.tokenizer.pad_token is None
    prompts = [policy.render([Message("user", (Text(text),))]) for text in ("Hi", "How many?")]
    generator = torch.Generator().manual_seed(0)
    groups = policy.sample(
        prompts, group_size=2, max_tokens=4, temperature=1.0, generator=generator
    )
    assert [len(group) for group in groups] == [2, 2]

"""Messages to prompts: the template's text, expanded placeholders, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch

from copd.policy import Policy
from copd.types import Image, Message, Text, Video

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


def test_media_stand_where_they_stood_in_the_message(seeing):
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


@pytest.mark.parametrize("part", [PICTURE, CLIP], ids=["image", "video"])
def test_a_text_model_refuses_to_look(reading, part):
    with pytest.raises(ValueError, match="Choose a model of qwen3_vl"):
        reading["llama"].render([Message("user", (Text("What?"), part))])


@pytest.mark.parametrize("kind", ["seeing", "reading"])
def test_a_missing_template_is_named(seeing_folder, reading_folders, tmp_path: Path, kind):
    source = seeing_folder if kind == "seeing" else reading_folders["llama"]
    for file in source.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ValueError, match="Add that file"):
        Policy.load(tmp_path).render([Message("user", (Text("Hi"),))])

"""Pixel rows against values computed by hand, and what processors refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer

from copd.policy.rendering.pixels import TemplatedPrompt, process_media
from copd.policy.rendering.processors import load_processor, save_processor
from copd.types import Image, Video


@pytest.fixture(scope="module")
def processor(seeing_folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(seeing_folder)
    return load_processor(str(seeing_folder), tokenizer, trust_remote_code=False)


def noise(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


IMAGE = "<|image_pad|>"
VIDEO = "<|video_pad|>"


def test_pixels_of_an_image_by_hand(processor):
    pixels = noise(16, 32, 3)
    [inputs] = process_media(processor, [TemplatedPrompt(IMAGE, [Image(pixels)])])
    assert inputs["image_grid_thw"].tolist() == [[1, 2, 4]]
    scaled = (pixels / 255 - 0.5) / 0.5
    # rows of 8 x 8 patches, 2 x 2 neighbours together; each patch is channel, time, height, width
    third = scaled[8:16, 0:8].transpose(2, 0, 1)[:, None].repeat(2, axis=1).reshape(-1)
    fifth = scaled[0:8, 16:24].transpose(2, 0, 1)[:, None].repeat(2, axis=1).reshape(-1)
    rows = inputs["pixel_values"]
    assert rows.shape == (8, 3 * 2 * 8 * 8)
    np.testing.assert_allclose(rows[2].numpy(), third, atol=1e-5)
    np.testing.assert_allclose(rows[4].numpy(), fifth, atol=1e-5)


def test_a_still_clip_has_the_pixels_of_the_image(processor):
    pixels = noise(32, 48, 3)
    [image] = process_media(processor, [TemplatedPrompt(IMAGE, [Image(pixels)])])
    still = Video(np.stack([pixels, pixels]), fps=1.0)
    [video] = process_media(processor, [TemplatedPrompt(VIDEO, videos=[still])])
    assert video["video_grid_thw"].tolist() == image["image_grid_thw"].tolist()
    torch.testing.assert_close(
        video["pixel_values_videos"], image["pixel_values"], atol=1e-5, rtol=0
    )


def test_resizing_a_clip_is_close_to_resizing_the_image(processor):
    smooth = np.add.outer(np.arange(40), np.arange(50))[..., None].repeat(3, -1).astype(np.uint8)
    [image] = process_media(processor, [TemplatedPrompt(IMAGE, [Image(smooth)])])
    still = Video(np.stack([smooth, smooth]), fps=1.0)
    [video] = process_media(processor, [TemplatedPrompt(VIDEO, videos=[still])])
    assert image["image_grid_thw"].tolist() == [[1, 4, 6]]
    assert video["video_grid_thw"].tolist() == [[1, 4, 6]]
    # Pillow and torch can round a pixel differently: one level of 255, on a scale of -1 to 1
    torch.testing.assert_close(
        video["pixel_values_videos"], image["pixel_values"], atol=2.1 / 255, rtol=0
    )


def test_every_frame_is_used_at_its_own_time(processor):
    frames = noise(5, 16, 16, 3)
    [inputs] = process_media(processor, [TemplatedPrompt(VIDEO, videos=[Video(frames, fps=4.0)])])
    assert inputs["video_grid_thw"].tolist() == [[3, 2, 2]]
    text = processor.tokenizer.decode(inputs["input_ids"])
    block = f"<|vision_start|>{VIDEO}<|vision_end|>"
    # means of 0.0 and 0.25, of 0.5 and 0.75, of 1.0 and itself again
    assert text == f"<0.1 seconds>{block}<0.6 seconds>{block}<1.0 seconds>{block}"
    last = inputs["pixel_values_videos"].reshape(3, 4, 3, 2, 64)[2]
    assert torch.equal(last[:, :, 0], last[:, :, 1])


def test_token_types_follow_the_placeholders(processor):
    text = f"a{IMAGE}b{VIDEO}"
    media = [Image(noise(16, 32, 3))], [Video(noise(2, 16, 16, 3), 1)]
    [inputs] = process_media(processor, [TemplatedPrompt(text, *media)])
    ids = inputs["input_ids"]
    image_id, video_id = processor.image_token_id, processor.video_token_id
    expected = (ids == image_id).long() + 2 * (ids == video_id).long()
    assert torch.equal(inputs["mm_token_type_ids"], expected)
    assert (ids == image_id).sum() == 2
    assert (ids == video_id).sum() == 1


def test_saved_settings_carry_standard_names_and_load_again(processor, tmp_path: Path):
    save_processor(processor, tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    assert settings["processor_class"] == "Qwen3VLProcessor"
    assert settings["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
    assert settings["video_processor"]["video_processor_type"] == "Qwen3VLVideoProcessor"
    for file in tmp_path.iterdir():
        assert "Torch" not in file.read_text()
    pixels = noise(32, 48, 3)
    expected = processor.image_processor(pixels, return_tensors="pt")["pixel_values"]
    found = AutoImageProcessor.from_pretrained(tmp_path)(pixels, return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected)
    again = load_processor(str(tmp_path), processor.tokenizer, trust_remote_code=False)
    assert again.video_processor.to_dict() == processor.video_processor.to_dict()


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        (Image(noise(16, 16, 4)), "expected uint8 of shape H W 3"),
        (Image(noise(16, 16)), "expected uint8 of shape H W 3"),
        (Image(noise(16, 16, 3) / np.float32(255)), "expected uint8 of shape H W 3"),
        (Video(noise(16, 16, 3), 1.0), "expected uint8 of shape F H W 3"),
        (Video(noise(1, 16, 16, 3), 1.0), "Pass one frame as an image"),
        (Video(noise(2, 16, 16, 3), 0.0), r"Set Video\.fps"),
    ],
)
def test_wrong_pixels_are_refused(processor, part, remedy):
    images, videos = ([part], []) if isinstance(part, Image) else ([], [part])
    with pytest.raises(ValueError, match=remedy):
        process_media(processor, [TemplatedPrompt(IMAGE if images else VIDEO, images, videos)])


def test_a_prompt_takes_no_image_of_another_prompt(processor):
    picture = Image(noise(16, 16, 3))
    with pytest.raises(ValueError, match="Leave the token out of messages"):
        process_media(
            processor, [TemplatedPrompt(IMAGE * 2, [picture]), TemplatedPrompt("?", [picture])]
        )
    clip = Video(noise(2, 16, 16, 3), 1.0)
    with pytest.raises(ValueError, match=r"one <\|video_pad\|> for each video: got 1 for 0"):
        process_media(
            processor,
            [TemplatedPrompt(IMAGE + VIDEO, [picture]), TemplatedPrompt(VIDEO, [], [clip])],
        )

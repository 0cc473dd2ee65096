"""Templated prompts with their pictures and clips to token ids and pixel rows.

Knows no messages and no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy import generic, uint8
from numpy.typing import NDArray
from torch import Tensor
from transformers.image_utils import ChannelDimension
from transformers.video_utils import VideoMetadata

from copd.policy.rendering.processors import Processor
from copd.types import Image, Video


@dataclass(frozen=True, eq=False)
class Templated:
    """A prompt as its template gives it: a placeholder in the text for each picture and clip."""

    text: str
    images: Sequence[Image] = ()
    videos: Sequence[Video] = ()


def read_media(processor: Processor, prompts: Sequence[Templated]) -> list[dict[str, Tensor]]:
    """Prompts with pictures or clips to `input_ids` and pixel rows, each as if it came alone.

    All frames are used; their times, frame number / fps, are in the text (Qwen3-VL: each temporal
    patch is preceded by its mean time) or in `second_per_grid_ts` for the positions (Qwen2.5-VL).
    One call for all, since each takes the processor a millisecond or two to check its settings.
    """
    for prompt in prompts:
        _check_media(prompt)
        _check_placeholders(processor, prompt)
    images = [image for prompt in prompts for image in prompt.images]
    videos = [video for prompt in prompts for video in prompt.videos]
    inputs: dict[str, Any] = {
        "text": [prompt.text for prompt in prompts],
        "text_kwargs": {"add_special_tokens": False},
    }
    if images:
        inputs["images"] = [image.pixels for image in images]
        inputs["images_kwargs"] = {"input_data_format": ChannelDimension.LAST}
    if videos:
        inputs["videos"] = [video.frames for video in videos]
        inputs["videos_kwargs"] = {
            "input_data_format": ChannelDimension.LAST,
            "do_sample_frames": False,
            "video_metadata": [_video_metadata(video) for video in videos],
        }
    read = processor(**inputs)
    found = [
        {name: torch.tensor(read[name][row]) for name in ("input_ids", "mm_token_type_ids")}
        for row in range(len(prompts))
    ]
    for name, sizes in _shares(read, prompts).items():
        # copies, or every prompt would keep the pixels of all in memory
        for prompt, own in zip(found, torch.as_tensor(read[name]).split(sizes), strict=True):
            if len(own):
                prompt[name] = own.clone()
    return found


def _shares(read: Mapping[str, Any], prompts: Sequence[Templated]) -> dict[str, list[int]]:
    """How many rows of what was read for all belong to each prompt."""
    num_images = [len(prompt.images) for prompt in prompts]
    num_videos = [len(prompt.videos) for prompt in prompts]
    shares = {
        "image_grid_thw": num_images,
        "video_grid_thw": num_videos,
        "second_per_grid_ts": num_videos,
    }
    for grid, pixels in (
        ("image_grid_thw", "pixel_values"),
        ("video_grid_thw", "pixel_values_videos"),
    ):
        if grid in read:
            of_prompt = torch.as_tensor(read[grid]).split(shares[grid])
            shares[pixels] = [int(own.prod(dim=1).sum()) for own in of_prompt]
    return {name: sizes for name, sizes in shares.items() if name in read}


def _video_metadata(video: Video) -> VideoMetadata:
    count = len(video.frames)
    return VideoMetadata(total_num_frames=count, fps=video.fps, frames_indices=list(range(count)))


def _check_media(prompt: Templated) -> None:
    for image in prompt.images:
        _check_rgb("image", image.pixels, "H W 3")
    for video in prompt.videos:
        _check_video(video)


def _check_placeholders(processor: Processor, prompt: Templated) -> None:
    """The processor counts those of all prompts together, and hands pictures out in order."""
    for kind, token, media in (
        ("image", processor.image_token, prompt.images),
        ("video", processor.video_token, prompt.videos),
    ):
        if prompt.text.count(token) != len(media):
            raise ValueError(
                f"a prompt needs one {token} for each {kind}: got {prompt.text.count(token)} for "
                f"{len(media)}. Leave the token out of what messages say; the template writes it."
            )


def _check_video(video: Video) -> None:
    _check_rgb("video", video.frames, "F H W 3")
    if len(video.frames) < 2:
        raise ValueError(
            f"a video needs at least 2 frames: got {len(video.frames)}. Pass one frame as an image."
        )
    if not video.fps > 0:
        raise ValueError(
            f"a video needs its frames per second: got {video.fps}, expected a positive number. "
            "Set Video.fps to the rate at which the frames were taken."
        )


def _check_rgb(kind: str, pixels: NDArray[generic], layout: str) -> None:
    if pixels.dtype != uint8 or pixels.ndim != len(layout.split()) or pixels.shape[-1] != 3:
        raise ValueError(
            f"{kind} pixels must be RGB: got {pixels.dtype} of shape {pixels.shape}, "
            f"expected uint8 of shape {layout}. Convert them before building the message."
        )

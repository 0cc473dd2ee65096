"""From templated prompts with images and videos to token ids and pixel rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy import generic, uint8
from numpy.typing import NDArray
from torch import Tensor
from transformers.image_utils import ChannelDimension
from transformers.video_utils import VideoMetadata

from copd.policy.rendering.processors import Processor
from copd.types import Image, Video

MEDIA_FIELDS: dict[Literal["image", "video"], tuple[str, str]] = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
"""The names of the pixel rows and of their grids in a prompt's media, by kind."""


@dataclass(frozen=True, eq=False)
class TemplatedPrompt:
    """The text of a chat template, with a placeholder for each image and video, and the media."""

    text: str
    images: Sequence[Image] = ()
    videos: Sequence[Video] = ()


def process_media(
    processor: Processor, prompts: Sequence[TemplatedPrompt]
) -> list[dict[str, Tensor]]:
    """Turn prompts with images or videos into `input_ids` and pixel rows.

    The result of each prompt does not depend on the others. One call serves all of them, since the
    processor takes a millisecond or two to check its settings.

    All frames of a video are used. Their times, frame number / fps, are in the text (Qwen3-VL
    writes the mean time before each temporal patch) or in `second_per_grid_ts`, from which the
    positions follow (Qwen2.5-VL).
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
    outputs = processor(**inputs)
    split = [
        {name: torch.tensor(outputs[name][row]) for name in ("input_ids", "mm_token_type_ids")}
        for row in range(len(prompts))
    ]
    for name, sizes in _num_rows(outputs, prompts).items():
        # clone, or every prompt would keep the pixels of all in memory
        for prompt, own in zip(split, torch.as_tensor(outputs[name]).split(sizes), strict=True):
            if len(own):
                prompt[name] = own.clone()
    return split


def _num_rows(
    outputs: Mapping[str, Any], prompts: Sequence[TemplatedPrompt]
) -> dict[str, list[int]]:
    """Count the rows of each output that belong to each prompt."""
    num_images = [len(prompt.images) for prompt in prompts]
    num_videos = [len(prompt.videos) for prompt in prompts]
    counts = {
        "image_grid_thw": num_images,
        "video_grid_thw": num_videos,
        "second_per_grid_ts": num_videos,
    }
    for pixels, grid in MEDIA_FIELDS.values():
        if grid in outputs:
            grids = torch.as_tensor(outputs[grid]).split(counts[grid])
            counts[pixels] = [int(own.prod(dim=1).sum()) for own in grids]
    return {name: sizes for name, sizes in counts.items() if name in outputs}


def _video_metadata(video: Video) -> VideoMetadata:
    count = len(video.frames)
    return VideoMetadata(total_num_frames=count, fps=video.fps, frames_indices=list(range(count)))


def _check_placeholders(processor: Processor, prompt: TemplatedPrompt) -> None:
    """Check each prompt by itself: the processor only counts the placeholders of all together."""
    for kind, token, media in (
        ("image", processor.image_token, prompt.images),
        ("video", processor.video_token, prompt.videos),
    ):
        if prompt.text.count(token) != len(media):
            raise ValueError(
                f"a prompt needs one {token} for each {kind}: got {prompt.text.count(token)} for "
                f"{len(media)}. Leave the token out of messages; the template writes it."
            )


def _check_media(prompt: TemplatedPrompt) -> None:
    for image in prompt.images:
        _check_rgb("image", image.pixels, "H W 3")
    for video in prompt.videos:
        _check_rgb("video", video.frames, "F H W 3")
        if len(video.frames) < 2:
            raise ValueError(
                f"a video needs at least 2 frames: got {len(video.frames)}. "
                "Pass one frame as an image."
            )
        if not video.fps > 0:
            raise ValueError(
                f"a video needs its frames per second: got {video.fps}, expected a positive "
                "number. Set Video.fps to the rate at which the frames were taken."
            )


def _check_rgb(kind: str, pixels: NDArray[generic], layout: str) -> None:
    if pixels.dtype != uint8 or pixels.ndim != len(layout.split()) or pixels.shape[-1] != 3:
        raise ValueError(
            f"{kind} pixels must be RGB: got {pixels.dtype} of shape {pixels.shape}, "
            f"expected uint8 of shape {layout}. Convert them before building the message."
        )

"""Processors of the Qwen-VL families that need no torchvision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL.Image import Resampling
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

MODEL_TYPES = frozenset({"qwen3_vl", "qwen3_vl_moe", "qwen2_5_vl"})
"""The model families that read images and videos."""

_INTERPOLATION = {Resampling.BICUBIC: "bicubic", Resampling.BILINEAR: "bilinear"}


class TorchBackend(TorchvisionBackend):
    """The two pixel operations that video processors take from torchvision, in plain torch.

    It stands between the family's classes, which choose the target size, and torchvision's.
    """

    def resize(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        image: Tensor,
        size: SizeDict,
        resample: Resampling | int | None = None,
        antialias: bool = True,
    ) -> Tensor:
        """Resize frames `... C H W`; uint8 frames come out bit-equal to torchvision's."""
        assert size.height is not None and size.width is not None, "the family sets both"
        target = (size.height, size.width)
        if tuple(image.shape[-2:]) == target:
            return image
        mode = _INTERPOLATION[Resampling.BILINEAR if resample is None else Resampling(resample)]
        frames = image.reshape(-1, *image.shape[-3:])
        resized = torch.nn.functional.interpolate(frames, target, mode=mode, antialias=antialias)
        return resized.reshape(*image.shape[:-2], *target)

    def normalize(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        image: Tensor,
        mean: Tensor | float | Sequence[float],
        std: Tensor | float | Sequence[float],
        inplace: bool = False,
    ) -> Tensor:
        """Return `(image - mean) / std` per channel of `... C H W`, always as a new tensor."""
        center = torch.as_tensor(mean, dtype=image.dtype).reshape(-1, 1, 1)
        scale = torch.as_tensor(std, dtype=image.dtype).reshape(-1, 1, 1)
        return (image - center) / scale


class TorchVideoProcessor(  # pyright: ignore[reportIncompatibleMethodOverride]
    Qwen3VLVideoProcessor, TorchBackend
):
    """Qwen3-VL's video processor in plain torch: the same sizes, patches and saved settings."""

    cap_pixels_per_frame = False

    def convert_to_rgb(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, video: Tensor
    ) -> Tensor:
        """Return the video: `copd.types.Video` is RGB."""
        return video


class FrameVideoProcessor(TorchVideoProcessor):
    """Qwen2.5-VL's video processor, whose own module imports torchvision.

    Patches are those of Qwen3-VL; the bounds on pixels are per frame instead of per video.
    """

    patch_size = 14
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size: ClassVar = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}

    def __init__(self, **settings: Any) -> None:
        bounds = settings.pop("min_pixels", None), settings.pop("max_pixels", None)
        size = dict(settings.pop("size", None) or self.size)
        for edge, bound in zip(("shortest_edge", "longest_edge"), bounds, strict=True):
            size[edge] = size[edge] if bound is None else bound
        super().__init__(size=size, **settings)

    def resize(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        videos: Tensor,
        size: SizeDict,
        resample: Resampling | int | None,
        factor: int,
        temporal_factor: int,
        cap_pixels_per_frame: bool | None = None,
    ) -> Tensor:
        """Resize each frame to sides that are multiples of `factor`, within the bounds."""
        assert size.shortest_edge is not None and size.longest_edge is not None, "set when built"
        height, width = smart_resize(
            *videos.shape[-2:],
            factor=factor,
            min_pixels=size.shortest_edge,
            max_pixels=size.longest_edge,
        )
        return TorchBackend.resize(self, videos, SizeDict(height=height, width=width), resample)


class _AcceptsTorchVideo:
    """Lets a processor hold a `TorchVideoProcessor`.

    Without torchvision, the class that transformers checks for is a placeholder.
    """

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type | tuple:
        if argument_name == "video_processor":
            return TorchVideoProcessor
        parent: Any = super()
        return parent.check_argument_for_proper_class(argument_name, argument)


class TorchProcessor(_AcceptsTorchVideo, Qwen3VLProcessor):
    """Qwen3-VL's processor: the time of each temporal patch stands before it in the text."""


class Torch25Processor(_AcceptsTorchVideo, Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor: a video is one run of placeholders; its times are positions."""


Processor = TorchProcessor | Torch25Processor


def build_processor(
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    video_processor: TorchVideoProcessor,
) -> Processor:
    """Combine the three parts into a processor that expands media placeholders."""
    is_25 = isinstance(video_processor, FrameVideoProcessor)
    return (Torch25Processor if is_25 else TorchProcessor)(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=video_processor,
        chat_template=tokenizer.chat_template,
    )


def load_processor(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    trust_remote_code: bool,
    model_type: str = "qwen3_vl",
) -> Processor:
    """Load the processor of a folder or hub name, around a tokenizer that is already loaded.

    A chat template that only the processor's files hold (older folders) moves to the tokenizer.
    """
    image_processor = AutoImageProcessor.from_pretrained(
        path, backend="pil", trust_remote_code=trust_remote_code
    )
    family = FrameVideoProcessor if model_type == "qwen2_5_vl" else TorchVideoProcessor
    video_processor = family.from_pretrained(path)
    assert isinstance(video_processor, TorchVideoProcessor)
    if tokenizer.chat_template is None:
        settings, _ = TorchProcessor.get_processor_dict(path)
        tokenizer.chat_template = settings.get("chat_template")
    return build_processor(tokenizer, image_processor, video_processor)


def save_processor(processor: Processor, path: str | Path) -> None:
    """Save tokenizer, template and processor settings under the class names of transformers."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    processor.tokenizer.save_pretrained(folder)
    settings = processor.to_dict()
    is_25 = isinstance(processor, Torch25Processor)
    settings["processor_class"] = "Qwen2_5_VLProcessor" if is_25 else "Qwen3VLProcessor"
    settings["image_processor"]["image_processor_type"] = "Qwen2VLImageProcessor"
    settings["video_processor"]["video_processor_type"] = (
        "Qwen2VLVideoProcessor" if is_25 else "Qwen3VLVideoProcessor"
    )
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "processor_config.json").write_text(text, encoding="utf-8")

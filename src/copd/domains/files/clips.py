"""Frames of a video file by rate and budget; the only module that imports `av`.

A file is demuxed once to find the times of its frames, then decoded once, up to the last frame that
is needed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from copd.types import Video

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

MAX_WORK = 2**37
"""Largest number of pixels of all frames of a file: about an hour of 720p at 30 frames a second."""

_CONTAINERS = ((b"\x1a\x45\xdf\xa3", 0, "matroska"), (b"GIF8", 0, "gif"), (b"ftyp", 4, "mov"))
"""First bytes of WebM, GIF and MP4 files, their offset, and libav's name of the format.

The format is always given to libav, which would otherwise follow playlists to other files.
"""


@dataclass(frozen=True)
class ClipBudget:
    """Limits on the frames of a clip."""

    fps: float
    max_frames: int
    max_pixels: int
    """Of all frames together; larger frames are scaled down."""


def read_clip(source: Path | bytes, budget: ClipBudget) -> Video:
    """Read frames at rate `fps`, or evenly spaced if those are more than the budget allows."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        with _open(file) as container:
            times = _frame_times(container)
        chosen, fps = choose_frames(times, budget)
        with _open(file) as container:
            frames = list(_decode(container, [times[i] for i in chosen], budget))
    return Video(np.stack(frames), fps)


def choose_frames(times: list[float], budget: ClipBudget) -> tuple[list[int], float]:
    """Choose frames of a clip; return their indices, and how many they are per second.

    These are the frames shown at n evenly spaced moments, n = duration * fps within
    [2, max_frames].
    """
    if len(times) < 2:
        raise ValueError(f"has {len(times)} frames, a clip needs at least 2")
    period = (times[-1] - times[0]) / (len(times) - 1)
    duration = times[-1] - times[0] + period
    count = min(max(2, round(duration * budget.fps)), budget.max_frames, len(times))
    moments = times[0] + np.arange(count) * duration / count + 1e-3 * period
    chosen = np.searchsorted(times, moments, side="right") - 1
    return chosen.tolist(), count / duration


def _container_format(file: BinaryIO) -> str:
    file.seek(0)
    start = file.read(12)
    file.seek(0)
    for magic, offset, name in _CONTAINERS:
        if start[offset : offset + len(magic)] == magic:
            return name
    raise ValueError("is not an MP4, WebM or GIF file")


def _open(file: BinaryIO) -> InputContainer:
    try:
        import av
        from av.container import InputContainer
    except ImportError:
        raise ValueError(
            "clips need the library `av`, which is not installed: pip install 'copd[data]'"
        ) from None
    options = {"protocol_whitelist": "file"}
    container = av.open(file, mode="r", format=_container_format(file), options=options)
    assert isinstance(container, InputContainer), "opened for reading"
    return container


def _stream(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise ValueError("has no video stream")
    stream = container.streams.video[0]
    stream.codec_context.options = {"err_detect": "explode"}
    return stream


def _frame_times(container: InputContainer) -> list[float]:
    """Return the times of all frames, in seconds, without decoding; refuse cut-off files."""
    stream = _stream(container)
    size = max(stream.width * stream.height, 1)
    found: list[float] = []
    for packet in container.demux(stream):
        if packet.pts is not None and packet.time_base is not None and packet.size:
            found.append(float(packet.pts * packet.time_base))
        if len(found) * size > MAX_WORK:
            raise ValueError(f"is too long: over {len(found)} frames of {size} pixels, cut it")
    if len(found) < stream.frames:
        raise ValueError(f"is cut off: {len(found)} of {stream.frames} frames are there")
    times = sorted(set(found))
    declared = container.duration / 1e6 if container.duration else 0.0
    if times and times[-1] < 0.8 * declared - 1.0:
        raise ValueError(f"is cut off: it ends at {times[-1]:.1f} of {declared:.1f} seconds")
    return times


def _decode(
    container: InputContainer, times: list[float], budget: ClipBudget
) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames at some times as RGB, `H W 3`, all of the first one's size."""
    stream, waiting = _stream(container), list(times)
    size: tuple[int, int] | None = None
    for frame in container.decode(stream):
        if frame.time is None or frame.is_corrupt:
            raise ValueError("has broken frames")
        if frame.width * frame.height > budget.max_pixels:
            raise ValueError(
                f"has frames of {frame.width} x {frame.height}, max_pixels allows "
                f"{budget.max_pixels}"
            )
        size = size or _shrunk(frame, budget.max_pixels // len(times))
        while waiting and frame.time >= waiting[0] - 1e-6:
            pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            yield pixels.astype(np.uint8, copy=False)
            waiting.pop(0)
        if not waiting:
            return
    raise ValueError(f"is cut off or broken: {len(waiting)} of {len(times)} frames do not decode")


def _shrunk(frame: VideoFrame, max_pixels: int) -> tuple[int, int]:
    """Return width and height of a frame, scaled down to at most `max_pixels`."""
    scale = min(1.0, math.sqrt(max_pixels / (frame.width * frame.height)))
    return max(1, int(frame.width * scale)), max(1, int(frame.height * scale))

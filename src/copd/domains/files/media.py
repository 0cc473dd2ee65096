"""Pictures and clips from untrusted paths and bytes.

Media that cannot be used raise ValueError with the reason.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from copd.domains.files.clips import ClipBudget, read_clip
from copd.domains.files.draft import Media
from copd.types import Image, Video

Decoded = TypeVar("Decoded")

MAX_PICTURE_BYTES = 2**28
MAX_CLIP_BYTES = 2**32
MAX_ASPECT = 200
"""Largest ratio of the sides; Qwen processors accept no more."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that Pillow may open: some others start programs."""

_EDGE = 2**16
"""Bytes at both ends of a file that identify it, together with its size."""


@dataclass(frozen=True)
class MediaReader:
    """Loads the media that the rows of one table name."""

    root: Path
    """Folder that media files must be in, with links resolved."""

    folder: Path
    """Folder that relative paths start from."""

    max_pixels: int
    clip: ClipBudget

    def read(self, media: Media) -> Image | Video:
        """Decode a picture or a clip."""
        is_image = media.kind == "image"
        source = self._source(media, MAX_PICTURE_BYTES if is_image else MAX_CLIP_BYTES)
        if is_image:
            return decoded(lambda: self._picture(source), _described(media))
        return decoded(lambda: read_clip(source, self.clip), _described(media))

    def identify(self, media: Media) -> str:
        """Hash the size and both ends of a file, so that its name does not matter."""
        digest = hashlib.blake2b(digest_size=16)
        source = self._source(media, MAX_CLIP_BYTES)
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "big"))
            for start in (0, max(0, size - _EDGE)):
                file.seek(start)
                digest.update(file.read(_EDGE))
        return digest.hexdigest()

    def path(self, name: str) -> Path | None:
        """Return the path of a file that a row names, or None for an address on the web."""
        scheme, separator, rest = name.partition("://")
        if not separator:
            return self.folder / name
        return self.folder / unquote(rest) if scheme == "file" else None

    def _source(self, media: Media, max_bytes: int) -> Path | bytes:
        if isinstance(media.source, bytes):
            return media.source
        try:
            path = self._find(media.source)
            size = path.stat().st_size
        except (OSError, RuntimeError) as error:  # too long, no permission, a cycle of links
            reason = error.strerror if isinstance(error, OSError) else None
            raise ValueError(f"{_described(media)[:200]}: {reason or error}") from None
        if size > max_bytes:
            raise ValueError(f"{_described(media)} has {size} bytes, at most {max_bytes} are read")
        return path

    def _find(self, name: str) -> Path:
        """Return the file of a name; it must be below the root once links are resolved."""
        path = self.path(name)
        if path is None:
            raise ValueError(f"{name[:80]!r} is an address: nothing is downloaded, save it")
        path = path.resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"file {name!r} lies outside media_root {str(self.root)!r}")
        if not path.is_file():
            raise ValueError(f"file {name!r} does not exist, or is not a regular file")
        return path

    def _picture(self, source: Path | bytes) -> Image:
        opened = io.BytesIO(source) if isinstance(source, bytes) else source
        with Pillow.open(opened, formats=_FORMATS) as picture:
            width, height = picture.size
            if width * height > self.max_pixels:
                raise ValueError(
                    f"has {width} x {height} pixels, max_pixels allows {self.max_pixels}"
                )
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"has {width} x {height} pixels: too long and thin for a model")
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"has pixels of kind {picture.mode}, expected 8 bits per colour")
            return Image(np.asarray(_flat(picture)))


def _described(media: Media) -> str:
    return f"{media.kind} {media.source!r}" if isinstance(media.source, str) else media.kind


def _flat(picture: Pillow.Image) -> Pillow.Image:
    """Convert a picture to upright RGB, on a white background."""
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    background = Pillow.new("RGBA", layer.size, "white")
    return Pillow.alpha_composite(background, layer).convert("RGB")


def decoded(decode: Callable[[], Decoded], what: str) -> Decoded:
    """Decode an untrusted file; raise ValueError with a sentence if it cannot be used.

    Decoders raise whatever their libraries raise, so any exception is caught, here and only here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            return decode()
    except Exception as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        reason = f"{kind}{str(error).strip().partition(chr(10))[0]}"[:200]
        raise ValueError(f"{what[:200]} cannot be used: {reason}") from None

"""Pictures from paths and bytes, and where files may lie. Trusts nothing it is given.

Every refusal is a ValueError that says what is wrong with the file.
"""

from __future__ import annotations

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

Made = TypeVar("Made")

MAX_PICTURE_BYTES = 2**28
MAX_CLIP_BYTES = 2**32
MAX_ASPECT = 200
"""Longest side over shortest; Qwen processors take no more."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What Pillow may open: some of its other formats start programs."""

_EDGE = 2**16
"""Bytes at either end of a file that, with its size, tell it from others."""


@dataclass(frozen=True)
class MediaReader:
    """Loads the media of one file's problems."""

    root: Path
    """Folder they must lie in, links resolved."""

    folder: Path
    """Where relative paths start."""

    max_pixels: int
    clip: ClipBudget

    def read(self, media: Media) -> Image | Video:
        """The decoded pixels."""
        is_image = media.kind == "image"
        source = self._source(media, MAX_PICTURE_BYTES if is_image else MAX_CLIP_BYTES)
        if is_image:
            return decoded(lambda: self._picture(source), self._called(media))
        return decoded(lambda: read_clip(source, self.clip), self._called(media))

    def identify(self, media: Media) -> str:
        """The same for the same file under any name: a hash of its size and both its ends."""
        digest = hashlib.blake2b(digest_size=16)
        source = self._source(media, MAX_CLIP_BYTES)
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            size = file.seek(0, os.SEEK_END)
            digest.update(size.to_bytes(8, "big"))
            for place in (0, max(0, size - _EDGE)):
                file.seek(place)
                digest.update(file.read(_EDGE))
        return digest.hexdigest()

    def _called(self, media: Media) -> str:
        return f"{media.kind} {media.source!r}" if isinstance(media.source, str) else media.kind

    def _source(self, media: Media, max_bytes: int) -> Path | bytes:
        if isinstance(media.source, bytes):
            return media.source
        try:
            path = self._find(media.source)
            size = path.stat().st_size
        except (OSError, RuntimeError) as error:  # too long, no permission, a circle of links
            reason = error.strerror if isinstance(error, OSError) else None
            raise ValueError(f"{self._called(media)[:200]}: {reason or error}") from None
        if size > max_bytes:
            raise ValueError(
                f"{self._called(media)} has {size} bytes, at most {max_bytes} are read"
            )
        return path

    def _find(self, name: str) -> Path:
        """The file of that name, if it lies below the root once all links are followed."""
        if "://" in name:
            scheme, _, rest = name.partition("://")
            if scheme != "file":
                raise ValueError(f"{name[:80]!r} is an address: nothing is downloaded, save it")
            name = unquote(rest)
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"file {name!r} lies outside media_root {str(self.root)!r}")
        if not path.is_file():
            raise ValueError(f"file {name!r} is not there, or no ordinary file")
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


def _flat(picture: Pillow.Image) -> Pillow.Image:
    """Upright RGB; what is transparent becomes white, as on a page."""
    upright = ImageOps.exif_transpose(picture)
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    layer = upright.convert("RGBA")
    page = Pillow.new("RGBA", layer.size, "white")
    return Pillow.alpha_composite(page, layer).convert("RGB")


def decoded(make: Callable[[], Made], what: str) -> Made:
    """What a decoder makes of a stranger's file, or a sentence.

    Decoders raise whatever their libraries raise, so everything is caught here and only here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            return make()
    except Exception as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        reason = f"{kind}{str(error).strip().partition(chr(10))[0]}"[:200]
        raise ValueError(f"{what[:200]} cannot be used: {reason}") from None

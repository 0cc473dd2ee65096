"""The pictures of a page as PNG data URIs, each stored once."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_SIDE = 320
"""Pixels of the longer side; larger pictures are scaled down."""
MAX_BYTES = 8_000_000
"""Bytes of all PNG files of a page together."""


class Album:
    """The pictures of a page, in the order they were added."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.uris: list[str] = []
        self._places: dict[tuple[bytes, tuple[int, ...]], int] = {}
        self._room = max_bytes

    def place(self, pixels: NDArray[np.uint8]) -> int | None:
        """Return the index in `uris` of a picture `H W 3`; None if the album is full."""
        key = (pixels.tobytes(), pixels.shape)
        if key not in self._places:
            png = _png(pixels)
            if len(png) > self._room:
                return None
            self._room -= len(png)
            self._places[key] = len(self.uris)
            self.uris.append(f"data:image/png;base64,{base64.b64encode(png).decode()}")
        return self._places[key]


def _png(pixels: NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(pixels)
    if bool((pixels == pixels[..., :1]).all()):
        picture = picture.convert("L")
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()

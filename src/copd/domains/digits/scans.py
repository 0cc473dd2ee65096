"""The scanned digits as arrays.

The scans are the 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships: the test part of
"Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning
Repository, 1998, doi:10.24432/C50P49, CC BY 4.0). `scans.npz` holds them unchanged, in
scikit-learn's order.
"""

from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from copd.types import Split

Ink = Literal["light", "dark"]
"""Light digits on black, or dark digits on white."""
CELL = 16
"""Side of a cell in pixels: a scan enlarged twice, one visual token of the embedded base."""

_PARTS: dict[Split, slice] = {
    "train": slice(0, 1197),
    "validation": slice(1197, 1397),
    "test": slice(1397, None),
}


@cache
def _archive() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    with resources.files("copd.domains.digits").joinpath("scans.npz").open("rb") as file:
        data = np.load(file, allow_pickle=False)
        return data["images"], data["labels"]


@cache
def scan_ids(split: Split, digit: int) -> NDArray[np.int64]:
    """Return the indices of the scans of one digit in a split; the splits share no scan."""
    images, labels = _archive()
    order = np.random.default_rng(8).permutation(len(images))
    part = np.sort(order[_PARTS[split]])
    return part[labels[part] == digit]


def draw_digit(
    rng: np.random.Generator, split: Split, digit: int, ink: Ink = "light"
) -> NDArray[np.uint8]:
    """Draw a random scan of `digit` as a grey cell, `CELL CELL`, shifted by up to one pixel."""
    images, _ = _archive()
    scan = images[rng.choice(scan_ids(split, digit))]
    wide = np.zeros((CELL + 2, CELL + 2), dtype=np.uint8)
    wide[1:-1, 1:-1] = (scan.astype(np.uint16) * 255 // 16).repeat(2, axis=0).repeat(2, axis=1)
    down, right = rng.integers(0, 3, size=2)
    cell = wide[down : down + CELL, right : right + CELL]
    return cell if ink == "light" else np.uint8(255) - cell


def grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat a grey picture, `... H W`, over three colour channels, `... H W 3`."""
    return np.repeat(grey[..., None], 3, axis=-1)

"""Video suites of the digits world: rises, sums over chosen scans and order, over scans shown one
after another."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from copd.domains.digits.question import Generator, Question, joined, running
from copd.domains.digits.scans import CELL, draw_digit, grey_to_rgb
from copd.types import Split, Text, Video

FPS = 2.0
"""Every scan is seen for two frames, one second."""


def rises(rng: np.random.Generator, split: Split) -> Question:
    """How often the next digit is larger than the one before.

    The careless way counts the falls.
    """
    digits = rng.choice(10, size=rng.integers(4, 6)).tolist()
    steps = list(pairwise(digits))
    ups = sum(b > a for a, b in steps)
    downs = sum(b < a for a, b in steps)
    signs = "".join(f"{'<' if b > a else '>' if b < a else '='}{b}" for a, b in steps)
    mirrored = signs.translate(str.maketrans("<>", "><"))
    return Question(
        parts=(_clip(rng, split, digits, _sides(rng, digits)), Text("How often does it rise?")),
        answer=str(ups),
        worked=f"{digits[0]}{signs}",
        careless=f"{digits[0]}{mirrored}",
        careless_answer=str(downs),
    )


def left_sum(rng: np.random.Generator, split: Split) -> Question:
    """Add what is shown on one side.

    The careless way adds everything.
    """
    digits = rng.choice(10, size=rng.integers(4, 6)).tolist()
    while True:
        sides = _sides(rng, digits)
        if 0 < sum(sides) < len(sides):
            break
    word, side = (("left", 0), ("right", 1))[rng.integers(2)]
    chosen = [digit for digit, where in zip(digits, sides, strict=True) if where == side]
    seen = "".join(str(d) if where == side else "_" for d, where in zip(digits, sides, strict=True))
    return Question(
        parts=(_clip(rng, split, digits, sides), Text(f"Sum on the {word}?")),
        answer=str(sum(chosen)),
        worked=f"{seen}:{joined(running(chosen))}",
        careless=f"{joined(digits)}:{joined(running(digits))}",
        careless_answer=str(sum(digits)),
    )


def order(rng: np.random.Generator, split: Split) -> Question:
    """Which digit comes right before another one.

    The careless way names the one after it.
    """
    digits = rng.choice(10, size=rng.integers(4, 6), replace=False).tolist()
    place = int(rng.integers(1, len(digits) - 1))
    before, asked, after = digits[place - 1 : place + 2]
    return Question(
        parts=(
            _clip(rng, split, digits, _sides(rng, digits)),
            Text(f"Which comes before {asked}?"),
        ),
        answer=str(before),
        worked=f"{joined(digits)}:{before}{asked}",
        careless=f"{joined(digits)}:{asked}{after}",
        careless_answer=str(after),
    )


def _sides(rng: np.random.Generator, digits: list[int]) -> list[int]:
    """Left (0) or right (1) for every scan."""
    return rng.integers(0, 2, size=len(digits)).tolist()


def _clip(rng: np.random.Generator, split: Split, digits: list[int], sides: list[int]) -> Video:
    """Each scan for one second on the left or right half of a black frame, `CELL` high and two
    `CELL` wide."""
    frames: list[NDArray[np.uint8]] = []
    for digit, side in zip(digits, sides, strict=True):
        frame = np.zeros((CELL, 2 * CELL), dtype=np.uint8)
        frame[:, side * CELL : (side + 1) * CELL] = draw_digit(rng, split, digit)
        frames += [frame, frame]
    return Video(grey_to_rgb(np.stack(frames)), fps=FPS)


SUITES: dict[str, Generator] = {"rises": rises, "left_sum": left_sum, "order": order}

"""Video suites of the digits world: scans shown one after another."""

from itertools import pairwise

import numpy as np

from copd.domains.digits.generator import Question, SuiteGenerator, joined, running
from copd.domains.digits.scans import Ink, draw_digit, grey_to_rgb
from copd.types import Split, Text, Video

FPS = 2.0
"""Each scan is shown for two frames, one second."""


def rises(rng: np.random.Generator, split: Split) -> Question:
    """Count how often a digit is larger than the one before.

    The careless procedure counts the falls.
    """
    digits = rng.choice(10, size=rng.integers(4, 6)).tolist()
    steps = list(pairwise(digits))
    ups = sum(b > a for a, b in steps)
    downs = sum(b < a for a, b in steps)
    signs = "".join(f"{'<' if b > a else '>' if b < a else '='}{b}" for a, b in steps)
    mirrored = signs.translate(str.maketrans("<>", "><"))
    return Question(
        parts=(_clip(rng, split, digits, _inks(rng, digits)), Text("How often does it rise?")),
        answer=str(ups),
        worked=f"{digits[0]}{signs}",
        careless=f"{digits[0]}{mirrored}",
        careless_answer=str(downs),
    )


def light_sum(rng: np.random.Generator, split: Split) -> Question:
    """Add the light scans.

    The careless procedure adds all scans.
    """
    digits = rng.choice(10, size=rng.integers(4, 6)).tolist()
    while True:
        inks = _inks(rng, digits)
        if len(set(inks)) == 2:
            break
    shown = list(zip(digits, inks, strict=True))
    chosen = [digit for digit, ink in shown if ink == "light"]
    seen = "".join(str(digit) if ink == "light" else "_" for digit, ink in shown)
    return Question(
        parts=(_clip(rng, split, digits, inks), Text("Sum of the light ones?")),
        answer=str(sum(chosen)),
        worked=f"{seen}:{joined(running(chosen))}",
        careless=f"{joined(digits)}:{joined(running(digits))}",
        careless_answer=str(sum(digits)),
    )


def order(rng: np.random.Generator, split: Split) -> Question:
    """Ask which digit comes right before another one.

    The careless procedure names the one after it.
    """
    digits = rng.choice(10, size=rng.integers(4, 6), replace=False).tolist()
    place = int(rng.integers(1, len(digits) - 1))
    before, named, after = digits[place - 1 : place + 2]
    return Question(
        parts=(
            _clip(rng, split, digits, _inks(rng, digits)),
            Text(f"Which comes before {named}?"),
        ),
        answer=str(before),
        worked=f"{joined(digits)}:{before}{named}",
        careless=f"{joined(digits)}:{named}{after}",
        careless_answer=str(after),
    )


def _inks(rng: np.random.Generator, digits: list[int]) -> list[Ink]:
    return [("light", "dark")[dark] for dark in rng.integers(0, 2, size=len(digits))]


def _clip(rng: np.random.Generator, split: Split, digits: list[int], inks: list[Ink]) -> Video:
    """Show each scan for one second."""
    scans = [draw_digit(rng, split, *shown) for shown in zip(digits, inks, strict=True)]
    return Video(grey_to_rgb(np.repeat(np.stack(scans), int(FPS), axis=0)), fps=FPS)


SUITES: dict[str, SuiteGenerator] = {"rises": rises, "light_sum": light_sum, "order": order}

"""Image suites of the digits world: several scans in one picture."""

import numpy as np

from copd.domains.digits.generator import Question, SuiteGenerator, joined, running
from copd.domains.digits.scans import draw_digit, grey_to_rgb
from copd.types import Image, Split, Text

_LAYOUTS = ((1, 3), (3, 1), (1, 4), (2, 2), (4, 1))
"""Rows and columns of a picture; the scans are read row by row."""


def signed_sum(rng: np.random.Generator, split: Split) -> Question:
    """Add the light digits, subtract the dark ones.

    The careless procedure ignores the ink.
    """
    digits = _digits(rng)
    signs = rng.choice([-1, 1], size=digits.size)
    terms, plain = (digits * signs).tolist(), digits.tolist()
    return Question(
        parts=(_picture(rng, split, digits, signs), Text("Light minus dark?")),
        answer=str(sum(terms)),
        worked=f"{joined(terms)}:{joined(running(terms))}",
        careless=f"{joined(plain)}:{joined(running(plain))}",
        careless_answer=str(sum(plain)),
    )


def extreme(rng: np.random.Generator, split: Split) -> Question:
    """Ask for the largest, smallest or second largest digit.

    The careless procedure always takes the largest.
    """
    digits = _digits(rng, distinct=True)
    ranked = np.sort(digits)
    word, answer = (
        ("Largest?", ranked[-1]),
        ("Smallest?", ranked[0]),
        ("Second largest?", ranked[-2]),
    )[rng.integers(3)]
    return Question(
        parts=(_picture(rng, split, digits, _inks(rng, digits)), Text(word)),
        answer=str(answer),
        worked=f"{joined(digits.tolist())}:{joined(ranked.tolist())}",
        careless=joined(digits.tolist()),
        careless_answer=str(ranked[-1]),
    )


def count(rng: np.random.Generator, split: Split) -> Question:
    """Count the digits above a bound.

    The careless procedure counts those below it.
    """
    digits = _digits(rng)
    bound = int(rng.integers(2, 8))
    above = [digit for digit in digits.tolist() if digit > bound]
    below = [digit for digit in digits.tolist() if digit < bound]
    listed = joined(digits.tolist())
    return Question(
        parts=(_picture(rng, split, digits, _inks(rng, digits)), Text(f"How many above {bound}?")),
        answer=str(len(above)),
        worked=f"{listed}:{joined(above)}",
        careless=f"{listed}:{joined(below)}",
        careless_answer=str(len(below)),
    )


def _digits(rng: np.random.Generator, *, distinct: bool = False) -> np.ndarray:
    return rng.choice(10, size=rng.integers(3, 5), replace=not distinct)


def _inks(rng: np.random.Generator, digits: np.ndarray) -> np.ndarray:
    return rng.choice([-1, 1], size=digits.size)


def _picture(
    rng: np.random.Generator, split: Split, digits: np.ndarray, signs: np.ndarray
) -> Image:
    """Draw the scans in reading order on a random layout; a negative sign means dark ink."""
    layouts = [layout for layout in _LAYOUTS if layout[0] * layout[1] == digits.size]
    rows, columns = layouts[rng.integers(len(layouts))]
    cells = [
        draw_digit(rng, split, int(digit), "light" if sign > 0 else "dark")
        for digit, sign in zip(digits, signs, strict=True)
    ]
    lines = [
        np.concatenate(cells[row * columns : (row + 1) * columns], axis=1) for row in range(rows)
    ]
    return Image(grey_to_rgb(np.concatenate(lines, axis=0)))


SUITES: dict[str, SuiteGenerator] = {"signed_sum": signed_sum, "extreme": extreme, "count": count}

"""What a suite's generator makes: the question, its answer, and how one may work it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from copd.types import ContentPart, Split


@dataclass(frozen=True, eq=False)
class Question:
    """One generated question.

    The two work-outs are written down only to teach the embedded base its habits.
    """

    parts: tuple[ContentPart, ...]
    answer: str
    worked: str
    """Steps of a sound procedure; they lead to `answer`."""

    careless: str
    """Steps of a plausible procedure that overlooks something."""

    careless_answer: str
    """Where `careless` leads; sometimes right by luck."""


Generator = Callable[[np.random.Generator, Split], Question]
"""Draws a question; the split says which scans may be shown."""


def joined(numbers: Sequence[int]) -> str:
    """Numbers as the base writes its steps: `3,-1,7`."""
    return ",".join(map(str, numbers))


def running(terms: Sequence[int]) -> list[int]:
    """Partial sums of `terms`."""
    return np.cumsum(terms).tolist()

"""The result of a suite's generator: a question, its answer, and two ways to work it out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from copd.types import ContentPart, Split


@dataclass(frozen=True, eq=False)
class Question:
    """One generated question.

    The two procedures are used only to train the embedded base model.
    """

    parts: tuple[ContentPart, ...]
    answer: str
    worked: str
    """Steps of a sound procedure, which lead to `answer`."""

    careless: str
    """Steps of a plausible procedure that overlooks something."""

    careless_answer: str
    """The result of `careless`; sometimes right by luck."""


SuiteGenerator = Callable[[np.random.Generator, Split], Question]
"""Draws a question; the split decides which scans may be shown."""


def joined(numbers: Sequence[int]) -> str:
    """Join numbers as the base writes its steps: `3,-1,7`."""
    return ",".join(map(str, numbers))


def running(terms: Sequence[int]) -> list[int]:
    """Return the partial sums of `terms`."""
    return np.cumsum(terms).tolist()

"""What a domain is: indexable problems and the verifier that reads a completion.

Knows no model and no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from copd.types import Problem, Split


class Domain(Protocol):
    """A capability: its problems and its verifier.

    Problems are rebuilt from (split, index), always the same.
    """

    @property
    def name(self) -> str: ...

    @property
    def suites(self) -> tuple[str, ...]:
        """Suite names in reporting order."""
        ...

    @property
    def modality(self) -> str:
        """`text`, `image` or `video`: what a model must be able to read."""
        ...

    def num_problems(self, split: Split) -> int:
        """How many different problems the split has."""
        ...

    def problem(self, split: Split, index: int) -> Problem:
        """The problem at `index`, 0 <= index < num_problems(split)."""
        ...

    def verify(self, problem: Problem, text: str) -> float:
        """The reward in [0, 1] of a completion's text; what cannot be parsed earns 0.0."""
        ...

    def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """`verify` of many at once, in their order."""
        ...

    def extract_answer(self, problem: Problem, text: str) -> str:
        """What `verify` took for the answer in a completion's text; "" where it found none."""
        ...

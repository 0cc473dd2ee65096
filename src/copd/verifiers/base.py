"""What a verifier is. Knows no kind of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Pair = tuple[str, str]
"""A completion's text and the reference answer."""


class Verifier(Protocol):
    """How a domain judges completions."""

    def reward(self, text: str, answer: str) -> float:
        """In [0, 1]; what cannot be parsed earns 0.0."""
        ...

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        """`reward` of many pairs of completion and reference at once, in their order."""
        ...

    def extract_answer(self, text: str) -> str:
        """What it takes for the answer in a completion; empty where it finds none."""
        ...

    def reference_error(self, answer: str) -> str:
        """Why no completion could ever match this reference; empty where one can."""
        ...

    def format_reference(self, answer: str) -> str:
        """The reference as a completion would give it, to show how it is read."""
        ...

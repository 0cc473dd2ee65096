"""The base class of verifiers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

Pair = tuple[str, str]
"""The text of a completion, and the reference answer."""


class Verifier(ABC):
    """Rewards completions by comparing them with a reference answer.

    A subclass implements `reward` or `rewards`; each calls the other by default.
    """

    def reward(self, text: str, answer: str) -> float:
        """Return the reward of a completion, in [0, 1]; 0.0 if it cannot be parsed."""
        return self.rewards([(text, answer)])[0]

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the rewards of many pairs of completion and reference, in their order."""
        return [self.reward(*pair) for pair in pairs]

    @abstractmethod
    def extract_answer(self, text: str) -> str:
        """Return the answer found in a completion; "" if there is none."""

    def reference_error(self, answer: str) -> str:
        """Return why no completion could match this reference; "" if one can."""
        return ""

    @abstractmethod
    def format_reference(self, answer: str) -> str:
        """Write the reference as a completion would, to show how it is read."""

"""The protocol of a domain: problems by index, and the verification of completions."""

from collections.abc import Sequence
from typing import Protocol

from copd.types import Problem, Split


class Domain(Protocol):
    """A capability: its problems and its verifier.

    A problem is rebuilt from its split and index, and is the same each time.
    """

    @property
    def name(self) -> str: ...

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of the suites, in reporting order."""
        ...

    @property
    def modality(self) -> str:
        """What a model must be able to read: `text`, `image` or `video`."""
        ...

    def num_problems(self, split: Split) -> int:
        """Return the number of problems of a split."""
        ...

    def problem(self, split: Split, index: int) -> Problem:
        """Build the problem at `index`, 0 <= index < num_problems(split)."""
        ...

    def verify(self, problem: Problem, text: str) -> float:
        """Return the reward of a completion, in [0, 1]; 0.0 if no answer can be parsed."""
        ...

    def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """Return the rewards of many completions, one per problem, in their order."""
        ...

    def extract_answer(self, problem: Problem, text: str) -> str:
        """Return the answer that `verify` finds in a completion; "" if it finds none."""
        ...


def check_index(domain: Domain, split: Split, index: int) -> None:
    """Raise IndexError for an index beyond the problems of a split."""
    size = domain.num_problems(split)
    if not 0 <= index < size:
        raise IndexError(f"domain {domain.name!r} has {size} {split} problems: got index {index}")

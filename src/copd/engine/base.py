"""The engine's whole interface: bring branches to life and apply a method to many of them.

Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from copd.branch import Branch

Input = TypeVar("Input")
Output = TypeVar("Output")


class BranchLost(ChildProcessError):
    """A branch is gone or does not answer: its process ended, its machine, or its time.

    The others may be at any place now. After `clear` they can be brought to life again.
    """


class Engine(Protocol):
    """Where branches live.

    What crosses is plain data on the CPU.
    """

    is_parallel: bool
    """Whether `call` may be called from several threads, for different branches at a time."""

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        """A fresh branch with the weights of a model: a folder, a hub name, or "tiny".

        A frozen one is only asked, never trained. An engine may return before it is there; what is
        wrong then shows in the first `call`.
        """
        ...

    def drop(self, name: str) -> None:
        """Forgets a branch and frees what it held."""
        ...

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        """Applies a Branch method to the named branches; returns when all are done.

        What a branch raises is raised here; of several, the first one's.
        """
        ...

    def clear(self) -> None:
        """Forgets all branches, whatever they are doing."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...


def wait_for(engine: Engine, names: Sequence[str]) -> None:
    """Until branches that were spawned are there; what is wrong with them is raised here."""
    engine.call(arrive, dict.fromkeys(names))


def arrive(branch: Branch, _: None) -> None:
    """Nothing: who answers is there."""

"""The engine's whole interface: bring branches to life and apply a verb to many of them.

Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from copd.branch import Branch

Input = TypeVar("Input")
Output = TypeVar("Output")


class Engine(Protocol):
    """Where branches live.

    What crosses is plain data on the CPU.
    """

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        """A fresh branch with the weights of a model: a folder, a hub name, or "tiny".

        A frozen one is only asked, never trained.
        """
        ...

    def drop(self, name: str) -> None:
        """Forgets a branch and frees what it held."""
        ...

    def each(
        self, verb: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        """Applies a Branch method to the named branches; returns when all are done."""
        ...

    def close(self) -> None:
        """Frees everything."""
        ...

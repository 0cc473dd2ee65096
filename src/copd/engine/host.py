"""The inside of a process that hosts a branch, or a rank of one. Knows no way messages come in."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from copd.branch import Branch
from copd.branch.ranks import SINGLE_RANK
from copd.config import Config
from copd.engine.local import LocalEngine, choose_device
from copd.engine.rendezvous import RankSpec

Input = TypeVar("Input")
Output = TypeVar("Output")


class Host:
    """A local engine that holds one branch."""

    def __init__(self) -> None:
        self._engine: LocalEngine | None = None
        self._is_first = True

    def spawn(
        self,
        config: Config,
        folder: Path,
        name: str,
        model: str,
        frozen: bool,
        seat: RankSpec | None,
    ) -> str:
        """Whatever was here before is forgotten; returns where the branch is, for people.

        With a seat this process is one rank of several, for the rest of its life.
        """
        if self._engine is None:
            _enter(folder)
            ranks = SINGLE_RANK if seat is None else seat.take(choose_device(config.model.device))
            self._engine, self._is_first = LocalEngine(config, ranks), ranks.is_first
        self._engine.clear()
        self._engine.spawn(name, model, frozen=frozen)
        return f"process {os.getpid()} on {platform.node()}"

    def apply(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        """What a method returns, by branch; of several ranks only the first one says it."""
        assert self._engine is not None, "a branch is spawned first"
        outputs = self._engine.call(method, inputs)
        return outputs if self._is_first else {}

    def clear(self) -> None:
        if self._engine is not None:
            self._engine.clear()


def _enter(folder: Path) -> None:
    """Relative paths must mean here what they mean where the run was started."""
    if not folder.is_dir():
        raise ValueError(
            "every machine of the cluster must see the folder in which the run is started: "
            f"{platform.node()} has no {folder}. Start it in a folder that all of them share."
        )
    os.chdir(folder)

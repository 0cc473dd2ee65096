"""The server side of one process of a branch, independent of the transport."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

from copd.branch import Branch
from copd.branch.ranks import SINGLE_RANK
from copd.config import Config
from copd.engine.base import Input, Output
from copd.engine.local import LocalEngine, choose_device
from copd.engine.rendezvous import RankSpec


class Host:
    """A local engine that holds one branch, or one rank of it, for the life of a process."""

    def spawn(
        self,
        config: Config,
        folder: Path,
        name: str,
        model: str,
        frozen: bool,
        rank_spec: RankSpec | None,
    ) -> str:
        """Start the branch and return a description of this process."""
        _enter(folder)
        ranks = rank_spec.join(choose_device(config.model.device)) if rank_spec else SINGLE_RANK
        self._engine, self._is_first = LocalEngine(config, ranks), ranks.is_first
        self._engine.spawn(name, model, frozen=frozen)
        return f"process {os.getpid()} on {platform.node()}"

    def apply(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        """Call a method on the branch; ranks other than the first return nothing."""
        outputs = self._engine.call(method, inputs)
        return outputs if self._is_first else {}


def _enter(folder: Path) -> None:
    """Change to the folder of the run, so that relative paths mean the same in every process."""
    if not folder.is_dir():
        raise ValueError(
            "every machine of the cluster must see the folder in which the run is started: "
            f"{platform.node()} has no {folder}. Start it in a folder that all of them share."
        )
    os.chdir(folder)

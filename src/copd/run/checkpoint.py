"""Checkpoints of the whole ensemble: all branches, their optimizers and the place in the plan, as
one folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from copd.branch import Branch
from copd.engine import Engine
from copd.run.directory import make_folder_atomically, write_atomically

_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    """Steps of the plan that are done."""

    cost: dict[str, dict[str, int]]
    """Running cost per branch."""


def save_checkpoint(
    root: Path,
    engine: Engine,
    branches: tuple[str, ...],
    step: int,
    cost: dict[str, dict[str, int]],
    *,
    keep: int,
) -> None:
    """Writes `root/step_<step>` and then forgets all but the newest `keep`."""

    def fill(folder: Path) -> None:
        engine.each(Branch.save, dict.fromkeys(branches, folder))
        write_atomically(folder / _STATE, json.dumps({"step": step, "cost": cost}))

    root.mkdir(parents=True, exist_ok=True)
    make_folder_atomically(root / f"step_{step:08d}", fill)
    for old in _folders(root)[:-keep]:
        shutil.rmtree(old)


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint, if there is one; half-written folders are never looked at."""
    folders = _folders(root)
    if not folders:
        return None
    state = json.loads((folders[-1] / _STATE).read_text(encoding="utf-8"))
    return Checkpoint(folders[-1], state["step"], state["cost"])


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("step_*"))

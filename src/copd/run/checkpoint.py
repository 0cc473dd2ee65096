"""Checkpoints of a run: all branches with their optimizers and the step, in one folder."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from copd.branch import Branch
from copd.config import CheckpointConfig
from copd.engine import Engine
from copd.run.cost import CostCounts, no_cost
from copd.storage import make_folder_atomically, write_atomically

_STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    """Steps of the plan that are done."""

    cost: CostCounts


def save_checkpoint(
    root: Path,
    engine: Engine,
    branches: tuple[str, ...],
    step: int,
    cost: CostCounts,
    *,
    settings: CheckpointConfig,
) -> None:
    """Write `root/step_<step>` and delete all but the newest `keep` and the milestones."""

    def fill(folder: Path) -> None:
        engine.call(Branch.save, dict.fromkeys(branches, folder))
        _write_state(folder, step, cost)

    make_folder_atomically(_folder(root, step), fill)
    milestones = {_folder(root, each) for each in settings.milestones}
    for old in [f for f in _folders(root) if f not in milestones][: -settings.keep]:
        shutil.rmtree(old)


def adopt_checkpoint(
    root: Path, source: Checkpoint, engine: Engine, branches: tuple[str, ...]
) -> None:
    """Write a run's first checkpoint with the branches of another run that trains them alike.

    Branches that `source` lacks are saved as the engine has them: fresh.
    """
    shared = [name for name in branches if name in source.cost]
    fresh = [name for name in branches if name not in source.cost]
    cost = no_cost(branches) | {name: source.cost[name] for name in shared}

    def fill(folder: Path) -> None:
        for name in shared:
            shutil.copytree(source.folder / name, folder / name)
        engine.call(Branch.save, dict.fromkeys(fresh, folder))
        _write_state(folder, source.step, cost)

    make_folder_atomically(_folder(root, source.step), fill)


def latest_checkpoint(root: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint, if there is one."""
    folders = _folders(root)
    return _read(folders[-1]) if folders else None


def saved_steps(root: Path) -> int:
    """Return the number of steps that the newest checkpoint secures."""
    checkpoint = latest_checkpoint(root)
    return checkpoint.step if checkpoint else 0


def checkpoint_at(root: Path, step: int) -> Checkpoint | None:
    """Return the checkpoint after a step, if it was not deleted."""
    folder = _folder(root, step)
    return _read(folder) if folder.exists() else None


def _read(folder: Path) -> Checkpoint:
    state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return Checkpoint(folder, state["step"], state["cost"])


def _write_state(folder: Path, step: int, cost: CostCounts) -> None:
    write_atomically(folder / _STATE, json.dumps({"step": step, "cost": cost}))


def _folder(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("step_*"))

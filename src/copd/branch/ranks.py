"""The processes that make one branch, and what they do together. Knows no model and no method."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Failed:
    error: Exception


@dataclass(frozen=True)
class Ranks:
    """One process of a branch among all of its; the only one needs no mesh."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """The first one writes files."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This rank's part of so many problems: a run of them, equally many on all, or one less."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def all_ranks(self, work: Callable[[], Result]) -> list[Result]:
        """What every rank's work returns, on every rank and in their order.

        What one raises all raise, so nobody waits for a rank that has given up: `work` itself must
        not wait for others.
        """
        if self.mesh is None:
            return [work()]
        try:
            mine: object = work()
        except Exception as error:
            mine = _Failed(_portable(error, self.rank))
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self.mesh.get_group())
        for each in found:
            if isinstance(each, _Failed):
                raise each.error
        return found


SINGLE_RANK = Ranks()
"""A branch in one process."""


def _portable(error: Exception, rank: int) -> Exception:
    """The error with where it happened, unless it is one for users; one that cannot travel as its
    text."""
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, ValueError | ArithmeticError | OSError):
        error.add_note(f"raised in rank {rank} of a branch:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(trace)
    return error

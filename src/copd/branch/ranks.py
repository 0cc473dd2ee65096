"""The processes that make one branch, and what they compute together."""

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
    """One process among those of a branch. A single process needs no mesh."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Return this rank's consecutive share of `count` items; shares differ by at most one."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def all_ranks(self, work: Callable[[], Result]) -> list[Result]:
        """Run `work` on every rank and return all results, in the order of ranks.

        If one rank raises, all raise its error, so that nobody waits for a rank that has given up.
        `work` itself must not wait for other ranks.
        """
        if self.mesh is None:
            return [work()]
        try:
            own: object = work()
        except Exception as error:
            own = _Failed(_portable(error, self.rank))
        results: list[Any] = [None] * self.size
        dist.all_gather_object(results, own, group=self.mesh.get_group())
        for result in results:
            if isinstance(result, _Failed):
                raise result.error
        return results


SINGLE_RANK = Ranks()
"""A branch in one process."""


def _portable(error: Exception, rank: int) -> Exception:
    """Note in an error where it happened; replace one that cannot be pickled by its text."""
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, ValueError | ArithmeticError | OSError):
        error.add_note(f"raised in rank {rank} of a branch:\n{trace}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(trace)
    return error

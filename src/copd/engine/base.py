"""The interface of all engines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from copd.branch import Branch

Input = TypeVar("Input")
Output = TypeVar("Output")


class BranchLost(ChildProcessError):
    """A process or machine of a branch failed, or a call exceeded its time limit.

    The state of the other branches is undefined. After `Engine.clear` all can be spawned again.
    """


class Engine(Protocol):
    """The branches of a run, wherever they live.

    Inputs and outputs of calls are plain data on the CPU.
    """

    is_parallel: bool
    """Whether several threads may use `call` at a time, for different branches."""

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        """Start a branch with the weights of a model.

        May return before the branch is ready; errors then surface in its first `call`.

        Args:
            name: Name of the new branch.
            model: A folder, a hub name, or "tiny".
            frozen: Whether the branch is only queried, never trained.
        """

    def drop(self, name: str) -> None:
        """Close a branch and free its memory."""

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        """Call a method on several branches and wait for all of them.

        Args:
            method: Method of `Branch`, or a function of a branch and one input.
            inputs: Branch to its input.

        Returns:
            Branch to its output. An exception of a branch is raised here; of several, the first
            branch's.
        """
        ...

    def clear(self) -> None:
        """Close all branches, whatever they are doing."""

    def close(self) -> None:
        """Close all branches and free everything else."""


def wait_for(engine: Engine, names: Sequence[str]) -> None:
    """Wait until branches are ready, and raise what went wrong in starting them.

    Args:
        engine: Engine that has spawned the branches.
        names: Names of the branches.
    """
    engine.call(ping, dict.fromkeys(names))


def ping(branch: Branch, _: None) -> None:
    """Do nothing: a branch that returns is ready."""

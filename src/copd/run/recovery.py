"""Recovery of a run whose branches are lost."""

from collections.abc import Callable
from typing import TypeVar

from copd.engine import BranchLost

Result = TypeVar("Result")


def retry_lost_branches(
    work: Callable[[], Result],
    *,
    restart: Callable[[], object],
    progress: Callable[[], int],
    max_failures: int,
    report: Callable[[str], object],
) -> Result:
    """Repeat `work`, with a restart before each further attempt, until no branch is lost in it.

    After `max_failures` losses in a row without `progress` in saved steps the last one is raised;
    -1 is no limit.
    """
    reached, losses = progress(), 0
    while True:
        try:
            if losses:
                restart()
            return work()
        except BranchLost as lost:
            now = progress()
            reached, losses = now, 1 if now > reached else losses + 1
            if losses > max_failures >= 0:
                raise BranchLost(
                    f"{lost} That is loss {losses} without a new checkpoint in between: expected "
                    f"at most engine.max_failures = {max_failures}. If the machines are to blame "
                    "and not the run, raise it; -1 is no limit."
                ) from lost
            attempt = f"attempt {losses}" + (f" of {max_failures}" if max_failures >= 0 else "")
            report(f"{lost} Beginning again after step {now}, {attempt}.")

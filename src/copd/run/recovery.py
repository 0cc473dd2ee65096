"""Goes on by itself when branches are lost: from the newest checkpoint, and not for ever.

Does not know where branches live or what work is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from copd.engine import BranchLost

Start = TypeVar("Start")
Result = TypeVar("Result")


def retry_lost_branches(
    work: Callable[[Start], Result],
    first: Callable[[], Start],
    *,
    again: Callable[[], Start],
    progress: Callable[[], int],
    max_failures: int,
    say: Callable[[str], object],
) -> Result:
    """The result of `work` on what `first` gives, or on what `again` gives once a branch was lost.

    It begins again `max_failures` times in a row, without a limit if that is negative; a number of
    `progress` that has grown makes earlier losses forgotten.
    """
    reached, losses, begin = progress(), 0, first
    while True:
        try:
            return work(begin())
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
            say(f"{lost} Beginning again after step {now}, {attempt}.")
            begin = again

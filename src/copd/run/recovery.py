"""Goes on by itself when branches are lost: from the newest checkpoint, and not for ever.

Does not know where branches live or what work is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from copd.engine import BranchLost

Start = TypeVar("Start")
Result = TypeVar("Result")

MAX_LOSSES = 3
"""Times in a row that a run begins again without a new checkpoint in between."""


def surviving(
    work: Callable[[Start], Result],
    start: Start,
    *,
    again: Callable[[], Start],
    progress: Callable[[], int],
    say: Callable[[str], object],
) -> Result:
    """The result of `work`, begun again from what `again` gives whenever a branch is lost.

    A number of `progress` that has grown makes earlier losses forgotten.
    """
    reached, losses = progress(), 0
    begin: Callable[[], Start] = lambda: start  # noqa: E731
    while True:
        try:
            return work(begin())
        except BranchLost as lost:
            now = progress()
            reached, losses = now, 1 if now > reached else losses + 1
            if losses > MAX_LOSSES:
                raise
            say(f"{lost} Beginning again after step {now}, attempt {losses} of {MAX_LOSSES}.")
            begin = again

"""When a stage with an overlap band uses its teachers, from the lines of dynamics.jsonl so far."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from copd.recipes import OPD, Stage

DynamicsLine = Mapping[str, Any]
"""A line of dynamics.jsonl."""


def apply_band(stage: Stage, lines: Iterable[DynamicsLine]) -> Stage:
    """Return the stage of the next step: without teachers where its band pauses them.

    Teachers start at an overlap of `low` or less and pause at `high` or more; before the first such
    line they pause. Only lines on disk count, so a resumed run decides the same.
    """
    if stage.band is None:
        return stage
    is_taught = False
    for line in lines:
        overlap = mean_overlap(line, stage)
        if overlap <= stage.band.low:
            is_taught = True
        elif overlap >= stage.band.high:
            is_taught = False
    return stage if is_taught else stage.rlvr_only


def mean_overlap(line: DynamicsLine, stage: Stage) -> float:
    """Average the overlap of teachers with students, on the students' completions."""
    column = {name: index for index, name in enumerate(line["models"])}
    overlaps = [
        line["domains"][action.domain]["overlap"][column[action.branch]][column[action.teacher]]
        for action in stage.actions
        if isinstance(action, OPD)
    ]
    return float(np.mean(overlaps))

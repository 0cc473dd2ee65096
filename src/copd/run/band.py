"""Whether teachers speak in a step, by the overlap measured so far. Measures nothing itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from copd.recipes import OPD, Stage

DynamicsLine = Mapping[str, Any]
"""Of dynamics.jsonl."""


def apply_band(stage: Stage, lines: Iterable[DynamicsLine]) -> Stage:
    """The stage as it is in the next step: without its teachers where its band lets them rest.

    They begin at an overlap of `low` or less and end at `high` or more; in between the last one of
    these moments counts, and before the first they rest. It follows from the lines alone, so a
    resumed run decides alike.
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
    return stage if is_taught else stage.untaught


def mean_overlap(line: DynamicsLine, stage: Stage) -> float:
    """The mean over the stage's lessons of student and teacher, on the student's completions."""
    place = {name: index for index, name in enumerate(line["models"])}
    return float(
        np.mean(
            [
                line["domains"][action.domain]["overlap"][place[action.branch]][
                    place[action.teacher]
                ]
                for action in stage.actions
                if isinstance(action, OPD)
            ]
        )
    )

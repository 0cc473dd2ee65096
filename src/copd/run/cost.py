"""The running cost of a run, counted from what was really sampled, trained and scored."""

from __future__ import annotations

from collections.abc import Mapping

from copd.recipes import OPD, Stage
from copd.types import TrainingBatch

COUNTS = ("steps", "prompts", "completions", "sampled_tokens", "trained_tokens", "scored_tokens")

CostCounts = dict[str, dict[str, int]]
"""`COUNTS` by branch."""


def no_cost(branches: tuple[str, ...]) -> CostCounts:
    """All counts of all branches at zero."""
    return {branch: dict.fromkeys(COUNTS, 0) for branch in branches}


def add_step(
    cost: Mapping[str, Mapping[str, int]],
    stage: Stage,
    lessons: Mapping[str, tuple[TrainingBatch, ...]],
) -> CostCounts:
    """The cost after one more step.

    Tokens are completion tokens; scoring counts for the teacher.
    """
    total = {branch: dict(counts) for branch, counts in cost.items()}
    for branch, own in lessons.items():
        total[branch]["steps"] += 1
        for action, lesson in zip(stage.actions_of(branch), own, strict=True):
            tokens = len(lesson.batch.token_ids)
            total[branch]["prompts"] += len(lesson.batch.problems)
            total[branch]["completions"] += len(lesson.batch.lengths)
            total[branch]["sampled_tokens"] += tokens
            total[branch]["trained_tokens"] += tokens
            if isinstance(action, OPD):
                total[action.teacher]["scored_tokens"] += tokens
    return total

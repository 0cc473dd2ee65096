"""The cumulative cost of a run, counted from the batches of its steps."""

from collections.abc import Mapping

from copd.recipes import OPD, Stage
from copd.types import TrainingBatch

COUNTS = ("steps", "prompts", "completions", "sampled_tokens", "trained_tokens", "scored_tokens")

CostCounts = dict[str, dict[str, int]]
"""Branch to its `COUNTS`."""


def no_cost(branches: tuple[str, ...]) -> CostCounts:
    """Return zero for all counts of all branches."""
    return {branch: dict.fromkeys(COUNTS, 0) for branch in branches}


def add_step(
    cost: Mapping[str, Mapping[str, int]],
    stage: Stage,
    batches: Mapping[str, tuple[TrainingBatch, ...]],
) -> CostCounts:
    """Return the cost after one more step.

    Tokens are completion tokens; scored tokens count for the teacher.
    """
    total = {branch: dict(counts) for branch, counts in cost.items()}
    for branch, own in batches.items():
        total[branch]["steps"] += 1
        for action, batch in zip(stage.actions_of(branch), own, strict=True):
            tokens = len(batch.rollouts.token_ids)
            total[branch]["prompts"] += len(batch.rollouts.problems)
            total[branch]["completions"] += len(batch.rollouts.lengths)
            total[branch]["sampled_tokens"] += tokens
            total[branch]["trained_tokens"] += tokens
            if isinstance(action, OPD):
                total[action.teacher]["scored_tokens"] += tokens
    return total

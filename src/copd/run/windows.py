"""Which steps save, evaluate or compare the branches, and which lie between two that do.

Asks no branch anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from copd.config import Config
from copd.recipes import Plan
from copd.run.band import DynamicsLine, apply_band
from copd.run.step import Position


def saves(config: Config, step: int) -> bool:
    """Whether a checkpoint follows this step; after the last one it always does."""
    settings = config.checkpoint
    return step % settings.every == 0 or step in settings.milestones


def evaluates(config: Config, plan: Plan, step: int) -> bool:
    """Whether an evaluation follows this step; the one at the end of a run is another."""
    every = config.evaluation.every
    return bool(every) and step % every == 0 and step < plan.total_steps


def compares(config: Config, step: int) -> bool:
    """Whether all branches are compared after this step."""
    every = config.monitor.every
    return bool(every) and step % every == 0


def windows(config: Config, plan: Plan, done: int) -> Iterator[range]:
    """The steps after the first `done`, cut where all branches must be of the same step.

    Within a window nothing is asked of them but its steps. Where the tokens sampled decide which
    step is the last one, no branch may be ahead.
    """
    first, last = done + 1, plan.total_steps
    for step in range(first, last + 1):
        is_asked = saves(config, step) or evaluates(config, plan, step) or compares(config, step)
        if is_asked or step == last or config.max_tokens is not None:
            yield range(first, step + 1)
            first = step + 1


def positions_of(plan: Plan, steps: Sequence[int], lines: Iterable[DynamicsLine]) -> list[Position]:
    """A window's steps in their stages; lines of dynamics.jsonl decide for all what a band says."""
    measured, found = list(lines), []
    for step in steps:
        index, step_in_stage = plan.locate(step - 1)
        stage = apply_band(plan.stages[index], measured)
        found.append(Position(step, index, stage, step_in_stage))
    return found

"""Which steps are followed by a checkpoint, an evaluation or dynamics, and the windows between."""

from collections.abc import Iterable, Iterator, Sequence

from copd.config import Config
from copd.recipes import Plan
from copd.run.band import DynamicsLine, apply_band
from copd.run.step import Position


def saves(config: Config, step: int) -> bool:
    """Return whether a checkpoint is due after a step; the last step always has one."""
    settings = config.checkpoint
    return step % settings.every == 0 or step in settings.milestones


def evaluates(config: Config, plan: Plan, step: int) -> bool:
    """Return whether an evaluation is due after a step; the final one is separate."""
    every = config.evaluation.every
    return bool(every) and step % every == 0 and step < plan.total_steps


def measures_dynamics(config: Config, step: int) -> bool:
    """Return whether a line of dynamics.jsonl is due after a step; the last step always has one."""
    every = config.monitor.every
    return bool(every) and step % every == 0


def windows(config: Config, plan: Plan, done: int) -> Iterator[range]:
    """Split the steps after the first `done` where all branches must be at the same step.

    Within a window branches may be steps apart. With a token budget each step is a window: only its
    tokens show whether it is the last.
    """
    first, last = done + 1, plan.total_steps
    for step in range(first, last + 1):
        due = saves(config, step), evaluates(config, plan, step), measures_dynamics(config, step)
        if any(due) or step == last or config.max_tokens is not None:
            yield range(first, step + 1)
            first = step + 1


def positions_of(plan: Plan, steps: Sequence[int], lines: Iterable[DynamicsLine]) -> list[Position]:
    """Locate the steps of a window in the plan; bands see the lines of dynamics.jsonl before it."""
    before, positions = list(lines), []
    for step in steps:
        index, step_in_stage = plan.locate(step - 1)
        stage = apply_band(plan.stages[index], before)
        positions.append(Position(step, index, stage, step_in_stage))
    return positions

"""What a plan costs, from the plan and the rollout settings, and how it reads. Runs nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

from copd.config import RolloutConfig
from copd.recipes.plan import OPD, Action, Plan, Stage

_WIDTH = 100


@dataclass(frozen=True)
class BranchCost:
    """Work of one branch. Tokens are those of completions; prompts and media come on top."""

    steps: int
    """Branch steps: updates of this branch."""
    prompts: int
    completions: int
    sampled_tokens: int
    trained_tokens: int
    """Tokens in its updates; equal to the sampled ones, as every rollout is used once."""
    scored_tokens: int
    """Tokens of its students that it scores as their teacher."""


@dataclass(frozen=True)
class PlanCost:
    """Cost per branch, in the order of the plan."""

    branches: Mapping[str, BranchCost]
    completion_tokens: int
    """Tokens counted per completion."""
    is_upper_bound: bool
    """True when every completion is counted at its limit."""

    @property
    def total(self) -> BranchCost:
        """All branches together."""
        return BranchCost(*map(sum, zip(*map(astuple, self.branches.values()), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """The costs as plain values."""
        return {**asdict(self), "total": asdict(self.total)}


def plan_cost(
    plan: Plan, rollout: RolloutConfig, *, completion_tokens: int | None = None
) -> PlanCost:
    """Steps, prompts, completions and tokens of every branch.

    Token counts are upper bounds, each completion counted at `max_completion_tokens`, unless the
    expected `completion_tokens` are given.
    """
    limit = rollout.max_completion_tokens
    if completion_tokens is not None and not 1 <= completion_tokens <= limit:
        raise ValueError(
            f"completion_tokens must be between 1 and rollout.max_completion_tokens = {limit}: "
            f"got {completion_tokens}. Pass the mean length you expect."
        )
    length = completion_tokens or limit
    return PlanCost(
        branches={branch: _branch_cost(plan, branch, rollout, length) for branch in plan.branches},
        completion_tokens=length,
        is_upper_bound=completion_tokens is None,
    )


def describe(plan: Plan, cost: PlanCost) -> str:
    """The plan and its cost as text for a terminal, at most 100 columns wide for usual names."""
    block, times = _rounds(plan.stages)
    head = [f"Branches: {', '.join(plan.branches)}", _ending(plan), ""]
    repeat = [f"{times} rounds of"] if times > 1 else []
    lines = head + repeat + [line for stage in block for line in _stage_lines(stage)]
    return "\n".join([*lines, "", *_cost_lines(cost)])


def _branch_cost(plan: Plan, branch: str, rollout: RolloutConfig, length: int) -> BranchCost:
    steps = sum(stage.steps for stage in plan.stages if branch in stage.trained)
    batches = sum(stage.steps * len(stage.actions_of(branch)) for stage in plan.stages)
    asked = sum(
        stage.steps
        for stage in plan.stages
        for action in stage.actions
        if isinstance(action, OPD) and action.teacher == branch
    )
    prompts, batch = batches * rollout.num_prompts, rollout.num_prompts * rollout.group_size
    sampled = batches * batch * length
    return BranchCost(steps, prompts, batches * batch, sampled, sampled, asked * batch * length)


def _rounds(stages: tuple[Stage, ...]) -> tuple[tuple[Stage, ...], int]:
    """The shortest block of stages that, repeated, gives them all, and how often."""
    for size in range(1, len(stages) + 1):
        times, rest = divmod(len(stages), size)
        if rest == 0 and stages[:size] * times == stages:
            return stages[:size], times
    raise AssertionError("all stages are one block")


def _ending(plan: Plan) -> str:
    if plan.merge:
        merged = ", ".join(plan.merge.branches)
        return f"Result:   {plan.merge.into}, the {plan.merge.method.type} merge of {merged}"
    return f"Result:   {plan.result or 'every branch'}"


def _stage_lines(stage: Stage) -> list[str]:
    width = max(map(len, stage.trained))
    lines = [f"  {stage.name}, {stage.steps} steps"]
    for branch in stage.trained:
        learns = "; ".join(map(_action_text, stage.actions_of(branch)))
        left = f"    {branch.ljust(width)}  learns "
        lines += textwrap.wrap(
            learns, _WIDTH, initial_indent=left, subsequent_indent=" " * len(left)
        )
    if stage.band:
        low, high = stage.band.low, stage.band.high
        lines.append(f"    teachers from overlap {low:g} until {high:g}; counted in every step")
    if stage.max_staleness:
        lines.append(f"    teachers up to {stage.max_staleness} steps old")
    if frozen := sorted({t for b in stage.trained for t in stage.neighbours(b)} - {*stage.trained}):
        lines.append(f"    frozen teachers: {', '.join(frozen)}")
    return lines


def _action_text(action: Action) -> str:
    if isinstance(action, OPD):
        beta = "" if action.beta == 1 else f" (beta {action.beta:g})"
        return f"from {action.teacher} on {action.domain}{beta}"
    sampled = "" if action.temperature is None else f" at temperature {action.temperature:g}"
    return f"from rewards on {action.domain}{sampled}"


def _cost_lines(cost: PlanCost) -> list[str]:
    head = ("branch", "steps", "prompts", "completions", "sampled", "trained", "scored")
    costs = [*cost.branches.items(), ("total", cost.total)]
    rows = [head, *((name, *(f"{n:,}" for n in astuple(each))) for name, each in costs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    bound = "Upper bounds, with the limit of" if cost.is_upper_bound else "Expected, with"
    return [
        *lines,
        "",
        "Steps are branch steps: one optimizer update of one branch.",
        "Sampled, trained and (as a teacher) scored are tokens of completions; prompts and media",
        f"come on top. {bound} {cost.completion_tokens:,} tokens for every completion.",
    ]

"""What a plan costs in steps, prompts, completions and tokens, and the plan as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from copd.config import Config
from copd.planning.workload import WIDTH, Workload, find_workloads
from copd.recipes.plan import OPD, Action, Plan, Stage


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
    """Mean tokens of a completion."""
    is_upper_bound: bool
    """True when every completion is counted at its limit."""

    @property
    def total(self) -> BranchCost:
        """All branches together."""
        return BranchCost(*map(sum, zip(*map(astuple, self.branches.values()), strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as plain values."""
        return {**asdict(self), "total": asdict(self.total)}


def plan_cost(
    plan: Plan, config: Config, workloads: Mapping[str, Workload] | None = None
) -> PlanCost:
    """Count steps, prompts, completions and tokens of every branch.

    Tokens are counted by the mean lengths of the workloads, by default completions at their limit.
    """
    loads = workloads or find_workloads(config)
    branches = {branch: _branch_cost(plan, branch, loads) for branch in plan.branches}
    completions = sum(cost.completions for cost in branches.values())
    return PlanCost(
        branches,
        sum(cost.sampled_tokens for cost in branches.values()) // completions,
        all(load.lengths.mean == config.rollout.max_completion_tokens for load in loads.values()),
    )


def describe(plan: Plan, cost: PlanCost) -> str:
    """Describe a plan and its cost for a terminal, in 100 columns at most for usual names."""
    block, times = _rounds(plan.stages)
    lines = [f"Branches: {', '.join(plan.branches)}", _ending(plan), ""]
    lines += [f"{times} rounds of"] if times > 1 else []
    lines += [line for stage in block for line in _stage_lines(stage)]
    return "\n".join([*lines, "", *_cost_lines(cost)])


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out rows as columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _branch_cost(plan: Plan, branch: str, workloads: Mapping[str, Workload]) -> BranchCost:
    own = [
        (stage.steps, workloads[a.domain])
        for stage in plan.stages
        for a in stage.actions_of(branch)
    ]
    scored = [
        (stage.steps, workloads[action.domain])
        for stage in plan.stages
        for action in stage.actions
        if isinstance(action, OPD) and action.teacher == branch
    ]
    sampled = sum(steps * load.num_tokens for steps, load in own)
    return BranchCost(
        steps=sum(stage.steps for stage in plan.stages if branch in stage.trained),
        prompts=sum(steps * load.num_prompts for steps, load in own),
        completions=sum(steps * load.num_rows for steps, load in own),
        sampled_tokens=sampled,
        trained_tokens=sampled,
        scored_tokens=sum(steps * load.num_tokens for steps, load in scored),
    )


def _rounds(stages: tuple[Stage, ...]) -> tuple[tuple[Stage, ...], int]:
    """Return the shortest block of stages that, repeated, gives them all, and how often."""
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
            learns, WIDTH, initial_indent=left, subsequent_indent=" " * len(left)
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
    bound = "Upper bounds, with the limit of" if cost.is_upper_bound else "Expected, with"
    return [
        *align([head, *((name, *(f"{n:,}" for n in astuple(each))) for name, each in costs)]),
        "",
        "Steps are branch steps: one optimizer update of one branch.",
        "Sampled, trained and (as a teacher) scored are tokens of completions; prompts and media",
        f"come on top. {bound} {cost.completion_tokens:,} tokens for every completion.",
    ]

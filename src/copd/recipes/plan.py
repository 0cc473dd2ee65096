"""A plan: which branches learn from rewards or teachers in which stages, and what they become."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from copd.config import UNIFIED, BandConfig, MergeConfig, NoMerge, SelectMerge


@dataclass(frozen=True)
class RLVR:
    """A native batch: the branch samples problems of `domain` and learns from the rewards."""

    branch: str
    domain: str
    temperature: float | None = None
    """Sampling temperature; by default that of the run."""

    @property
    def key(self) -> str:
        """Name of the action within its branch, in metrics and seeds: `rlvr/text`."""
        return f"rlvr/{self.domain}"


@dataclass(frozen=True)
class OPD:
    """A cross batch: the branch samples problems of `domain` and `teacher` scores the tokens."""

    branch: str
    teacher: str
    domain: str
    beta: float = 1.0
    """Factor on the distillation signal, beta_k of the paper."""

    def __post_init__(self) -> None:
        if self.teacher == self.branch:
            raise ValueError(
                f"An OPD action needs a teacher other than the student: got {self.branch!r} twice. "
                "Name another branch as the teacher."
            )
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(
                f"beta of an OPD action must be above 0: got {self.beta} for {self.branch!r} from "
                f"{self.teacher!r}. Leave the action out instead."
            )

    @property
    def key(self) -> str:
        """Name of the action within its branch, in metrics and seeds: `opd/from_image/image`."""
        return f"opd/from_{self.teacher}/{self.domain}"


Action = RLVR | OPD


@dataclass(frozen=True)
class Stage:
    """Consecutive steps; in each, a branch makes one update on the batches of all its actions."""

    name: str
    steps: int
    actions: tuple[Action, ...]
    band: BandConfig | None = None
    """Bounds of the overlap that turn cross batches on and off; None has them in every step."""
    max_staleness: int = 0
    """Steps that the weights of a trained teacher may be old when it scores."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.actions:
            raise ValueError(
                f"Stage {self.name!r} must have steps and actions: got {self.steps} steps and "
                f"{len(self.actions)} actions. Leave the stage out instead."
            )
        named = [f"{action.branch}: {action.key}" for action in self.actions]
        if repeated := _repeated(named):
            raise ValueError(
                f"Stage {self.name!r} must have each action once: got {repeated!r} twice. "
                "Remove one; a larger batch is rollout.num_prompts."
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """The branches that make updates; all others are frozen in this stage."""
        return tuple(dict.fromkeys(action.branch for action in self.actions))

    @property
    def rlvr_only(self) -> Stage:
        """The same stage without cross batches."""
        return replace(self, actions=tuple(a for a in self.actions if isinstance(a, RLVR)))

    def actions_of(self, branch: str) -> tuple[Action, ...]:
        """Return the actions of one update of the branch."""
        return tuple(action for action in self.actions if action.branch == branch)

    def neighbours(self, branch: str) -> tuple[str, ...]:
        """Return the teachers of the branch."""
        found = [a.teacher for a in self.actions_of(branch) if isinstance(a, OPD)]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Merge:
    """The merge of branches into one model."""

    into: str
    branches: tuple[str, ...]
    method: MergeConfig


@dataclass(frozen=True)
class Plan:
    """Branches that all start as copies of the base, their stages, and the final model."""

    branches: tuple[str, ...]
    stages: tuple[Stage, ...]
    merge: Merge | None = None
    """The merge that makes the final model."""
    result: str | None = None
    """The branch that is the final model. Without merge and result, every branch is one."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("A plan must have at least one stage: got none. Add a Stage.")
        if repeated := _repeated(self.branches):
            raise ValueError(
                f"A plan must name each branch once: got {repeated!r} twice. Rename one of them."
            )
        used = {*self.merge.branches} if self.merge else {self.result}
        for stage in self.stages:
            for action in stage.actions:
                teachers = (action.teacher,) if isinstance(action, OPD) else ()
                for name in (action.branch, *teachers):
                    self._check_branch(f"Stage {stage.name!r}, {action.key}", name)
                    used.add(name)
        self._check_result()
        if idle := set(self.branches) - used:
            raise ValueError(
                f"Every branch of a plan must be used: got {sorted(idle)}, which neither learn nor "
                "teach nor end up in the result. Remove them from branches."
            )

    @property
    def total_steps(self) -> int:
        """Steps of all stages; a branch makes updates only in stages that train it."""
        return sum(stage.steps for stage in self.stages)

    @property
    def final(self) -> str | None:
        """The name of the final model, or None if every branch is one."""
        return self.merge.into if self.merge else self.result

    def locate(self, step: int) -> tuple[int, int]:
        """Return the index of the stage of a step of the plan, and the step within it."""
        if not 0 <= step < self.total_steps:
            raise ValueError(
                f"A step of this plan must be in 0 to {self.total_steps - 1}: got {step}. "
                "Compare with total_steps first; a run at total_steps has ended."
            )
        for index, stage in enumerate(self.stages):
            if step < stage.steps:
                return index, step
            step -= stage.steps
        raise AssertionError("total_steps is the sum over the stages")

    def _check_branch(self, where: str, name: str) -> None:
        if name not in self.branches:
            raise ValueError(
                f"{where} must name branches of the plan: got {name!r}, known are "
                f"{', '.join(self.branches)}. Add it to branches or correct the name."
            )

    def _check_result(self) -> None:
        if self.merge and self.result:
            raise ValueError(
                f"A plan must have a merge or a result: got both ({self.merge.into!r} and "
                f"{self.result!r}). Remove one."
            )
        if self.result:
            self._check_branch("The result", self.result)
        if not self.merge:
            return
        for name in self.merge.branches:
            self._check_branch("The merge", name)
        if len(set(self.merge.branches)) < max(2, len(self.merge.branches)):
            raise ValueError(
                "A merge must have at least two different branches: got "
                f"{list(self.merge.branches)}. Use result to export a single branch."
            )
        if self.merge.into in self.branches:
            raise ValueError(
                f"A merge must make a new model: got {self.merge.into!r}, which is a branch. "
                "Choose another name in into."
            )


def finish(branches: tuple[str, ...], stages: tuple[Stage, ...], merge: MergeConfig) -> Plan:
    """Build a plan whose final model is every branch, one of them, or their merge."""
    match merge:
        case NoMerge():
            return Plan(branches, stages)
        case SelectMerge():
            return Plan(branches, stages, result=merge.branch)
    return Plan(branches, stages, merge=Merge(UNIFIED, branches, merge))


def to_dict(plan: Plan) -> dict[str, Any]:
    """Convert a plan to plain values, for `plan.json` and `copd plan --json`.

    Args:
        plan: A plan.

    Returns:
        Values that JSON can hold.
    """

    def action_dict(action: Action) -> dict[str, Any]:
        own = {name: value for name, value in asdict(action).items() if value is not None}
        return {"key": action.key, **own}

    return {
        "branches": list(plan.branches),
        "stages": [
            {
                "name": stage.name,
                "steps": stage.steps,
                "actions": [action_dict(action) for action in stage.actions],
                **({"band": stage.band.model_dump()} if stage.band else {}),
                **({"max_staleness": stage.max_staleness} if stage.max_staleness else {}),
            }
            for stage in plan.stages
        ],
        "merge": plan.merge
        and {
            "into": plan.merge.into,
            "branches": list(plan.merge.branches),
            "method": plan.merge.method.model_dump(mode="json"),
        },
        "result": plan.result,
    }


def _repeated(names: Collection[str]) -> str | None:
    """Return the first name that occurs twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)

"""Who learns from whom, and when, as a value. Knows no torch, no model and no recipe."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from copd.config import UNIFIED, BandConfig, MergeConfig, NoMerge, SelectMerge


@dataclass(frozen=True)
class RLVR:
    """A native batch: the branch samples problems of `domain` and learns from their rewards."""

    branch: str
    domain: str
    temperature: float | None = None
    """Of its sampling; by default that of the run."""

    @property
    def key(self) -> str:
        """Names the action within its branch, in metrics and seeds: `rlvr/text`."""
        return f"rlvr/{self.domain}"


@dataclass(frozen=True)
class OPD:
    """A cross batch: the branch samples problems of `domain`, `teacher` scores its tokens."""

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
        """Names the action within its branch, in metrics and seeds: `opd/from_image/image`."""
        return f"opd/from_{self.teacher}/{self.domain}"


Action = RLVR | OPD


@dataclass(frozen=True)
class Stage:
    """Consecutive steps of one kind; in each a branch makes one update on all its actions."""

    name: str
    steps: int
    actions: tuple[Action, ...]
    band: BandConfig | None = None
    """Where the overlap decides in which steps the teachers speak; otherwise in all."""
    max_staleness: int = 0
    """Steps that the weights of a teacher which trains may be old when it is asked."""

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
        """The branches that make an update; every other branch is frozen in this stage."""
        return tuple(dict.fromkeys(action.branch for action in self.actions))

    @property
    def untaught(self) -> Stage:
        """The same stage without its teachers."""
        return replace(self, actions=tuple(a for a in self.actions if isinstance(a, RLVR)))

    def actions_of(self, branch: str) -> tuple[Action, ...]:
        """What one update of the branch is made of."""
        return tuple(action for action in self.actions if action.branch == branch)

    def neighbours(self, branch: str) -> tuple[str, ...]:
        """The teachers of the branch."""
        found = [a.teacher for a in self.actions_of(branch) if isinstance(a, OPD)]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Merge:
    """How branches become one model."""

    into: str
    branches: tuple[str, ...]
    method: MergeConfig


@dataclass(frozen=True)
class Plan:
    """A recipe made explicit: branches that all start as copies of the base, stages, a result."""

    branches: tuple[str, ...]
    stages: tuple[Stage, ...]
    merge: Merge | None = None
    """Makes the final model out of branches."""
    result: str | None = None
    """The branch that is the final model. Without merge and result, every branch is one."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("A plan must have at least one stage: got none. Add a Stage.")
        if repeated := _repeated(self.branches):
            raise ValueError(
                f"A plan must name each branch once: got {repeated!r} twice. Rename one of them."
            )
        for stage in self.stages:
            for action in stage.actions:
                self._check_branch(f"Stage {stage.name!r}, {action.key}", action.branch)
                if isinstance(action, OPD):
                    self._check_branch(f"Stage {stage.name!r}, {action.key}", action.teacher)
        self._check_result()
        if idle := set(self.branches) - self._used():
            raise ValueError(
                f"Every branch of a plan must be used: got {sorted(idle)}, which neither learn nor "
                "teach nor end up in the result. Remove them from branches."
            )

    @property
    def total_steps(self) -> int:
        """Steps of all stages; a branch makes an update only in stages that train it."""
        return sum(stage.steps for stage in self.stages)

    @property
    def final(self) -> str | None:
        """The name of the final model, or None when every branch is one."""
        return self.merge.into if self.merge else self.result

    def locate(self, step: int) -> tuple[int, int]:
        """The stage index and the step within that stage of a step counted over the whole plan."""
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

    def _used(self) -> set[str]:
        stages = self.stages
        students = {action.branch for stage in stages for action in stage.actions}
        teachers = {a.teacher for stage in stages for a in stage.actions if isinstance(a, OPD)}
        merged = set(self.merge.branches) if self.merge else set()
        return students | teachers | merged | ({self.result} if self.result else set())


def finish(branches: tuple[str, ...], stages: tuple[Stage, ...], merge: MergeConfig) -> Plan:
    """A plan that ends as `merge` says: every branch, one of them, or their merge."""
    match merge:
        case NoMerge():
            return Plan(branches, stages)
        case SelectMerge():
            return Plan(branches, stages, result=merge.branch)
    return Plan(branches, stages, merge=Merge(UNIFIED, branches, merge))


def to_dict(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, for `plan.json` and `copd plan --json`."""
    return {
        "branches": list(plan.branches),
        "stages": [
            {
                "name": stage.name,
                "steps": stage.steps,
                "actions": [_action_dict(action) for action in stage.actions],
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


def _action_dict(action: Action) -> dict[str, Any]:
    """What is set of an action."""
    own = {name: value for name, value in asdict(action).items() if value is not None}
    return {"key": action.key, **own}


def _repeated(names: Collection[str]) -> str | None:
    """The first name that occurs twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)

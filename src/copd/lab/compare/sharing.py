"""Which runs of a study train the same experts first, so that these are trained once.

Every random draw follows from (run seed, branch, action, stage, step): an expert does not notice
which other branches are trained beside it, nor what comes after. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from copd.config import Config, ExpertsConfig
from copd.recipes import RLVR, build_plan

_WITHOUT_EFFECT = {
    "output_dir",
    "seed",
    "max_tokens",
    "recipe",
    "distill",
    "evaluation",
    "checkpoint",
    "tracking",
}
"""Settings that change nothing about an expert; seeds are told apart elsewhere."""


@dataclass(frozen=True)
class Start:
    """Where a run can begin: after a step of another one with the same seed."""

    method: str
    step: int


@dataclass(frozen=True)
class Sharing:
    """What is trained once."""

    starts: Mapping[str, Start]
    """Method to where it can begin."""
    hidden: Mapping[str, Config]
    """Experts that no method of the study has as its result, by a name no method can have."""
    milestones: Mapping[str, tuple[int, ...]]
    """Method or hidden experts to the steps after which others begin."""


@dataclass(frozen=True)
class _Member:
    method: str
    config: Config
    steps: int
    branches: Mapping[str, str]
    """Expert to its domain."""


@dataclass
class _Group:
    settings: dict[str, Any]
    members: list[_Member] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def takes(self, member: _Member) -> bool:
        known = self.branches
        return self.settings == _settings(member.config) and all(
            known.get(branch, domain) == domain for branch, domain in member.branches.items()
        )

    def add(self, member: _Member) -> None:
        self.members.append(member)
        self.branches |= member.branches


def share_experts(configs: Mapping[str, Config]) -> Sharing:
    """Groups of methods that train equal experts; in each the longest experts lead.

    Where no method's result is these experts, hidden ones are added. A run stays alone if it is
    evaluated on its way, as its leader may lack a model, or if its experts stop at a budget.
    """
    groups: list[_Group] = []
    for method, config in configs.items():
        if member := _member(method, config):
            group = next((group for group in groups if group.takes(member)), None)
            if group is None:
                groups.append(group := _Group(_settings(config)))
            group.add(member)
    starts: dict[str, Start] = {}
    hidden: dict[str, Config] = {}
    milestones: dict[str, tuple[int, ...]] = {}
    for group in (group for group in groups if len(group.members) > 1):
        leader = _leader(group)
        if leader is None:
            leader = f"_experts{len(hidden) + 1}"
            hidden[leader] = _experts(group)
        followers = [member for member in group.members if member.method != leader]
        starts |= {member.method: Start(leader, member.steps) for member in followers}
        milestones[leader] = tuple(sorted({member.steps for member in followers}))
    return Sharing(starts, hidden, milestones)


def _member(method: str, config: Config) -> _Member | None:
    stage = build_plan(config).stages[0]
    stops = isinstance(config.recipe, ExpertsConfig) and config.max_tokens is not None
    is_watched = config.evaluation.every or config.monitor.every
    if stage.name != "experts" or is_watched or stops:
        return None
    assert all(isinstance(action, RLVR) for action in stage.actions), "experts learn from rewards"
    return _Member(method, config, stage.steps, {a.branch: a.domain for a in stage.actions})


def _settings(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)


def _leader(group: _Group) -> str | None:
    longest = max(member.steps for member in group.members)
    for member in group.members:
        whole = member.steps == longest and dict(member.branches) == group.branches
        if whole and isinstance(member.config.recipe, ExpertsConfig):
            return member.method
    return None


def _experts(group: _Group) -> Config:
    config = group.members[0].config
    longest = max(member.steps for member in group.members)
    recipe = ExpertsConfig(branches=group.branches, steps=longest)
    return config.model_copy(update={"recipe": recipe, "max_tokens": None})

"""Which runs of a study begin with the same experts, so that these are trained once.

Every random draw follows from (run seed, branch, action, stage, step): an expert does not depend on
the branches trained beside it, nor on what comes after.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from copd.config import Config, ExpertsConfig
from copd.recipes import RLVR, Stage, build_plan

_WITHOUT_EFFECT = {
    *("output_dir", "seed", "max_tokens", "recipe"),
    *("distill", "evaluation", "checkpoint", "tracking"),
}
"""Settings that change nothing about an expert; only runs of one seed share experts."""

_Group = dict[str, Stage]
"""Method to its stage of experts, for methods whose experts are the same."""


@dataclass(frozen=True)
class Start:
    """Where a run can begin: after a step of another run with the same seed."""

    method: str
    step: int


@dataclass(frozen=True)
class Sharing:
    """The runs whose experts are trained once."""

    starts: dict[str, Start] = field(default_factory=dict)
    """Method to where it can begin."""
    hidden: dict[str, Config] = field(default_factory=dict)
    """Experts that are no method's result, by a name that no method can have."""
    milestones: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Method or hidden experts to the steps after which others begin."""


def share_experts(configs: Mapping[str, Config]) -> Sharing:
    """Group methods that train equal experts; the longest experts of a group lead it.

    Hidden experts are added where no method's result is these experts. A run stays alone if it is
    evaluated during training, as its leader may lack a model, or if its experts stop at a budget.
    """
    sharing = Sharing()
    for group in _groups(configs):
        longest = max(stage.steps for stage in group.values())
        branches = _branches(group.values())
        results = [
            method
            for method, stage in group.items()
            if isinstance(configs[method].recipe, ExpertsConfig)
            and (stage.steps, _branches([stage])) == (longest, branches)
        ]
        leader = results[0] if results else f"_experts{len(sharing.hidden) + 1}"
        if not results:
            recipe = ExpertsConfig(branches=branches, steps=longest)
            update = {"recipe": recipe, "max_tokens": None}
            sharing.hidden[leader] = configs[next(iter(group))].model_copy(update=update)
        steps = {method: stage.steps for method, stage in group.items() if method != leader}
        sharing.starts.update({method: Start(leader, step) for method, step in steps.items()})
        sharing.milestones[leader] = tuple(sorted(set(steps.values())))
    return sharing


def _groups(configs: Mapping[str, Config]) -> list[_Group]:
    """Return the groups of two methods or more."""
    groups: list[_Group] = []
    for method, config in configs.items():
        stage = _expert_stage(config)
        if stage is None:
            continue
        for group in groups:
            known, first = _branches(group.values()), configs[next(iter(group))]
            same_domains = all(known.get(a.branch, a.domain) == a.domain for a in stage.actions)
            if same_domains and _settings(config) == _settings(first):
                group[method] = stage
                break
        else:
            groups.append({method: stage})
    return [group for group in groups if len(group) > 1]


def _expert_stage(config: Config) -> Stage | None:
    """Return the first stage if it trains experts that can be shared."""
    stage = build_plan(config).stages[0]
    stops = isinstance(config.recipe, ExpertsConfig) and config.max_tokens is not None
    if stage.name != "experts" or stops or config.evaluation.every or config.monitor.every:
        return None
    assert all(isinstance(action, RLVR) for action in stage.actions), "experts learn from rewards"
    return stage


def _branches(stages: Iterable[Stage]) -> dict[str, str]:
    """Return the domain of each expert."""
    return {action.branch: action.domain for stage in stages for action in stage.actions}


def _settings(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)

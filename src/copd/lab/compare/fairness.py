"""What makes methods of a study comparable: equal budgets, equal problems, columns of their own.

Knows no torch and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from copd.config import Config
from copd.config.study import Study
from copd.recipes import Plan


def total_branch_steps(plan: Plan) -> int:
    """Updates of all branches together, the paper's budget."""
    return sum(stage.steps * len(stage.trained) for stage in plan.stages)


def check_budgets(study: Study, plans: Mapping[str, Plan]) -> None:
    """Refuse methods with unequal branch steps; shared experts count for each that needs them."""
    steps = {
        name: total_branch_steps(plan)
        for name, plan in plans.items()
        if study.methods[name].budget == "equal"
    }
    if study.equal == "branch_steps" and len(set(steps.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in steps.items())
        raise ValueError(
            f"all methods must have the same total of branch steps: got {counts}. Change the "
            'recipes\' steps, or set methods.NAME.budget = "own" for a method out of competition.'
        )


def check_problems(configs: Mapping[str, Config]) -> None:
    """Refuse methods that would be measured differently."""
    names = list(configs)
    wanted = measurement(configs[names[0]])
    for name in names[1:]:
        found = measurement(configs[name])
        for key, value in wanted.items():
            if found[key] != value:
                raise ValueError(
                    f"all methods must be measured alike: got {key} = {found[key]!r} for {name!r} "
                    f"and {value!r} for {names[0]!r}. Set it in common, or make two studies."
                )


def check_columns(columns: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse two columns of one name."""
    owners: dict[str, str] = {"base": "the base"}
    for method, own in columns.items():
        for column in own.values():
            if column in owners:
                raise ValueError(
                    f"every column must have a name of its own: got {column!r} from "
                    f"{owners[column]!r} and {method!r}. Change methods.{method}.label."
                )
            owners[column] = method


def measurement(config: Config) -> dict[str, Any]:
    """All that decides on which problems, and how, a model is measured."""
    limit = config.evaluation.max_completion_tokens or config.rollout.max_completion_tokens
    evaluation = config.evaluation.model_dump(
        include={"split", "num_problems", "num_samples", "temperature"}
    )
    domains = {
        name: domain.model_dump(mode="json", exclude={"num_train"})
        for name, domain in config.domains.items()
    }
    return {
        "model.path": config.model.path,
        **{f"evaluation.{key}": value for key, value in evaluation.items()},
        "evaluation.max_completion_tokens": limit,
        "domains": domains,
    }

"""Settings of the merge of branches into one model, one class per method."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.names import check_complete, check_known, listed
from copd.config.sections import (
    Count,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Section,
)


class NoMerge(Section):
    """No merge: every branch is a final model under its own name."""

    type: Literal["none"] = "none"


class SelectMerge(Section):
    """No merge: one branch is the final model, for instance the hub."""

    type: Literal["select"] = "select"
    branch: str
    """The branch that becomes the final model."""


class UniformMerge(Section):
    """The uniform average of the branches (paper: "simple parameter merging")."""

    type: Literal["uniform"] = "uniform"


class WeightedMerge(Section):
    """A weighted average of the branches."""

    type: Literal["weighted"] = "weighted"
    weights: dict[str, NonNegativeFloat]
    """One weight per branch; only their proportions matter."""

    @model_validator(mode="after")
    def _check(self) -> WeightedMerge:
        if not sum(self.weights.values()) > 0:
            raise ValueError(
                f"merge.weights must have a positive sum: got {self.weights}. "
                "Give at least one branch a weight above 0."
            )
        return self


class TaskArithmeticMerge(Section):
    """theta_0 + scale * mean_k (theta_k - theta_0) (2212.04089, whose lambda is scale / K)."""

    type: Literal["task_arithmetic"] = "task_arithmetic"
    scale: PositiveFloat = 1.0
    """Factor on the mean change of K branches: 1 is the average, K the sum."""


class TiesMerge(Section):
    """Trim small changes, elect a sign per parameter, average those that agree (2306.01708)."""

    type: Literal["ties"] = "ties"
    density: Fraction = 0.2
    """Share of each branch's changes that are not trimmed, the largest."""
    scale: PositiveFloat = 1.0
    """Factor on the merged change."""


class DareMerge(Section):
    """Drop changes at random, divide the rest by density, average them (2311.03099)."""

    type: Literal["dare"] = "dare"
    density: Fraction = 0.5
    """Probability that a change is not dropped."""
    scale: PositiveFloat = 1.0
    """Factor on the mean change."""
    seed: NonNegativeInt = 0
    """Seed of the drops."""


class ValidationMerge(Section):
    """The weighted average that scores best on validation problems."""

    type: Literal["validation"] = "validation"
    grid: Count = 4
    """The search covers all weights that are multiples of 1 / grid and sum to 1."""


MergeConfig = Annotated[
    NoMerge
    | SelectMerge
    | UniformMerge
    | WeightedMerge
    | TaskArithmeticMerge
    | TiesMerge
    | DareMerge
    | ValidationMerge,
    Field(discriminator="type"),
]


def check_merge(merge: MergeConfig, branches: Collection[str]) -> None:
    """Refuse a merge of branches that the recipe does not have."""
    if isinstance(merge, NoMerge):
        return
    if isinstance(merge, SelectMerge):
        check_known("recipe.merge.branch", merge.branch, branches, "branch")
    elif len(branches) < 2:
        raise ValueError(
            f"recipe.merge needs at least two branches: got only {listed(branches)}. "
            'Add a branch, or set recipe.merge.type = "none".'
        )
    if isinstance(merge, WeightedMerge):
        check_complete("recipe.merge.weights", merge.weights, branches)

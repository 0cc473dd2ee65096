"""From the branches' weights to one model's, as a merge configuration says.

Does not know where branches live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from copd.branch import Branch
from copd.config import (
    DareMerge,
    MergeConfig,
    NoMerge,
    SelectMerge,
    TaskArithmeticMerge,
    TiesMerge,
    UniformMerge,
    ValidationMerge,
    WeightedMerge,
)
from copd.engine import Engine
from copd.functional import average, choose_weights, dare, simplex_grid, task_arithmetic, ties
from copd.recipes import Merge
from copd.run.evaluation import Results, overall

Weights = Mapping[str, Tensor]


def merge_branches(
    engine: Engine, model: str, merge: Merge, validate: Callable[[str], Results]
) -> dict[str, float]:
    """The merged weights become a branch, to be measured and exported like any other.

    `validate` measures a branch on validation problems, for methods that choose by them. Returns
    each branch's share where the method has one.
    """
    engine.spawn(merge.into, model)
    base = engine.each(Branch.weights, {merge.into: None})[merge.into]

    def accuracy(weights: Weights) -> float:
        engine.each(Branch.set_weights, {merge.into: weights})
        return overall(validate(merge.into)).mean

    branches: dict[str, dict[str, Tensor]] = engine.each(
        Branch.weights, dict.fromkeys(merge.branches, None)
    )
    weights, shares = merge_weights(merge.method, branches, lambda: base, accuracy)
    engine.each(Branch.set_weights, {merge.into: weights})
    return shares


def merge_weights(
    method: MergeConfig,
    branches: Mapping[str, Weights],
    base: Callable[[], Weights],
    accuracy: Callable[[Weights], float],
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The merged weights, and each branch's share where the method has one.

    `base` is asked for theta_0 and `accuracy` for a model's validation accuracy only by methods
    that need them.
    """
    states = list(branches.values())
    match method:
        case UniformMerge():
            return average(states), dict.fromkeys(branches, 1.0 / len(states))
        case WeightedMerge(weights=weights):
            total = sum(weights.values())
            shares = {name: weights[name] / total for name in branches}
            return average(states, list(shares.values())), shares
        case ValidationMerge(grid=grid):
            candidates = simplex_grid(len(states), grid)
            chosen = choose_weights(candidates, lambda shares: accuracy(average(states, shares)))
            return average(states, chosen), dict(zip(branches, chosen, strict=True))
        case TaskArithmeticMerge(scale=scale):
            return task_arithmetic(base(), states, scale=scale), {}
        case TiesMerge(density=density, scale=scale):
            return ties(base(), states, density=density, scale=scale), {}
        case DareMerge(density=density, scale=scale, seed=seed):
            return dare(base(), states, density=density, scale=scale, seed=seed), {}
        case NoMerge() | SelectMerge():
            raise AssertionError("a plan with this method has no merge")

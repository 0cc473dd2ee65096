"""Merging of branches into one model, as a merge configuration says."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from copd.branch import Branch
from copd.config import (
    DareMerge,
    MergeConfig,
    ModelConfig,
    TaskArithmeticMerge,
    TiesMerge,
    UniformMerge,
    ValidationMerge,
    WeightedMerge,
)
from copd.engine import Engine
from copd.functional import (
    average,
    choose_weights,
    dare,
    merge_entries,
    simplex_grid,
    sum_changes,
    task_arithmetic,
    ties,
)
from copd.monitor.results import Results, overall
from copd.recipes import Merge

Weights = Mapping[str, Tensor]
Merged = tuple[dict[str, Tensor], dict[str, float]]
"""Merged weights, and the share of each branch if the method is an average."""


def merge_branches(
    engine: Engine, model: ModelConfig, merge: Merge, validate: Callable[[str], Results]
) -> dict[str, float]:
    """Merge branches into a new branch, which can be evaluated and exported like any other.

    `validate` evaluates a branch on validation problems, for methods that choose by them. Returns
    the share of each branch if the method is an average.
    """
    engine.spawn(merge.into, model.path)
    base = engine.call(Branch.weights, {merge.into: None})[merge.into]

    def accuracy(weights: Weights) -> float:
        engine.call(Branch.set_weights, {merge.into: weights})
        return overall(validate(merge.into)).mean

    branches = engine.call(Branch.weights, dict.fromkeys(merge.branches))
    if model.branches == "lora":
        weights, shares = merge_adapters(merge.method, branches, accuracy)
    else:
        weights, shares = merge_weights(merge.method, branches, lambda: base, accuracy)
    engine.call(Branch.set_weights, {merge.into: weights})
    return shares


def merge_weights(
    method: MergeConfig,
    branches: Mapping[str, Weights],
    base: Callable[[], Weights],
    accuracy: Callable[[Weights], float],
) -> Merged:
    """Merge whole weights.

    `base` gives the weights of theta_0 and `accuracy` validates weights, for methods that need it.
    """
    states = list(branches.values())
    match method:
        case TaskArithmeticMerge(scale=scale):
            return task_arithmetic(base(), states, scale=scale), {}
        case TiesMerge(density=density, scale=scale):
            return ties(base(), states, density=density, scale=scale), {}
        case DareMerge(density=density, scale=scale, seed=seed):
            return dare(base(), states, density=density, scale=scale, seed=seed), {}
    shares = _shares(method, branches, lambda given: accuracy(average(states, given)))
    return average(states, list(shares.values())), shares


def merge_adapters(
    method: MergeConfig,
    branches: Mapping[str, Weights],
    accuracy: Callable[[Weights], float],
) -> Merged:
    """Merge the weight changes that adapters of one base make.

    Averages and task arithmetic are sums of low-rank changes and exact. TIES and DARE work on
    entries, and their result takes as much memory as the weights that it changes.
    """
    states = list(branches.values())
    match method:
        case TaskArithmeticMerge(scale=scale):
            return sum_changes(states, [scale / len(states)] * len(states)), {}
        case TiesMerge(density=density, scale=scale):
            rule = partial(ties, density=density, scale=scale)
            return merge_entries(states, lambda _, changes: _from_zero(rule, changes)), {}
        case DareMerge(density=density, scale=scale, seed=seed):
            rule = partial(dare, density=density, scale=scale)
            return merge_entries(
                states, lambda n, changes: _from_zero(partial(rule, seed=seed + n), changes)
            ), {}
    shares = _shares(method, branches, lambda given: accuracy(sum_changes(states, given)))
    return sum_changes(states, list(shares.values())), shares


def _shares(
    method: MergeConfig,
    branches: Mapping[str, Weights],
    accuracy: Callable[[tuple[float, ...]], float],
) -> dict[str, float]:
    """Return the share of each branch in an average."""
    match method:
        case UniformMerge():
            return dict.fromkeys(branches, 1.0 / len(branches))
        case WeightedMerge(weights=weights):
            total = sum(weights.values())
            return {name: weights[name] / total for name in branches}
        case ValidationMerge(grid=grid):
            chosen = choose_weights(simplex_grid(len(branches), grid), accuracy)
            return dict(zip(branches, chosen, strict=True))
    raise AssertionError("a plan with this method has no merge")


def _from_zero(
    rule: Callable[[Weights, Sequence[Weights]], Weights], changes: Sequence[Tensor]
) -> Tensor:
    """Apply a rule for weights to the changes of one matrix."""
    zero = {"change": torch.zeros_like(changes[0])}
    return rule(zero, [{"change": change} for change in changes])["change"]

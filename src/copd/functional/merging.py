"""Several state dicts of one architecture into one. Knows named tensors, not models or files.

Every method is `base + rule(differences from base)`, tensor by tensor, so copies merge to
themselves. Arithmetic is in float32 or wider and rounded once, to each tensor's own dtype: bfloat16
inputs have by then lost most of what reinforcement learning changed, so merge float32 master
weights. Names, shapes and dtypes must agree.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

State = Mapping[str, Tensor]
Weights = tuple[float, ...]


def average(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean `sum w_i theta_i`, uniform by default: the paper's Merge.

    Differences are taken from the heaviest state, so weight 1 returns a state bit for bit.
    """
    weights = _weights(states, weights)
    if not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
        raise ValueError(
            f"the weights of an average sum to 1: got {weights}, sum {math.fsum(weights):g}. "
            "Divide them by their sum, or use task arithmetic."
        )
    heaviest = states[weights.index(max(weights))]
    return _merge(heaviest, states, lambda deltas: _weighted_sum(deltas, weights))


def task_arithmetic(
    base: State,
    states: Sequence[State],
    *,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> dict[str, Tensor]:
    """`base + scale * sum w_i (theta_i - base)` (arXiv 2212.04089).

    The weights default to 1 / K, so that scale 1 is the average and scale K the sum of the task
    vectors: the lambda of the reference is `scale / K`. They need not sum to 1 and may be negative,
    to forget.
    """
    weights = _weights(states, weights)
    return _merge(base, states, lambda deltas: scale * _weighted_sum(deltas, weights))


def ties(
    base: State, states: Sequence[State], *, density: float = 0.2, scale: float = 1.0
) -> dict[str, Tensor]:
    """TIES (arXiv 2306.01708): trim each task vector, elect a sign, average what agrees.

    Trimming keeps the `density` largest magnitudes of every tensor (equal ones at the edge all
    stay). The sign with the larger summed magnitude wins; in an exact tie the parameter keeps its
    base value.
    """
    _check_density(density)
    return _merge(base, states, lambda deltas: scale * _elect_and_average(_trim(deltas, density)))


def dare(
    base: State,
    states: Sequence[State],
    *,
    density: float,
    scale: float = 1.0,
    seed: int,
    then: Literal["linear", "ties"] = "linear",
) -> dict[str, Tensor]:
    """DARE (arXiv 2311.03099): drop entries at random, divide the rest by `density`, merge.

    `linear` takes the mean of the task vectors, unbiased over draws. `ties` elects signs without
    trimming again and averages the survivors only, so agreeing task vectors come out larger than
    they went in. The draws depend on the seed and the tensors' names and shapes, not on their
    order, dtype or device.
    """
    _check_density(density)
    generator = torch.Generator().manual_seed(seed)
    uniform = _weights(states, None)

    def rule(deltas: Tensor) -> Tensor:
        kept = torch.rand(deltas.shape, generator=generator).to(deltas.device) < density
        rescaled = deltas.masked_fill(~kept, 0.0) / density
        merged = (
            _weighted_sum(rescaled, uniform) if then == "linear" else _elect_and_average(rescaled)
        )
        return scale * merged

    return _merge(base, states, rule)


def simplex_grid(num_states: int, resolution: int) -> list[Weights]:
    """All tuples of `num_states` multiples of `1 / resolution` that sum to 1."""
    if num_states < 1 or resolution < 1:
        raise ValueError(
            f"a grid of weights has at least one state and one step: got {num_states} states "
            f"and resolution {resolution}. Raise both to 1 or more."
        )
    bars = combinations(range(resolution + num_states - 1), num_states - 1)
    edges = ((-1, *bar, resolution + num_states - 1) for bar in bars)
    return [
        tuple((edge[i + 1] - edge[i] - 1) / resolution for i in range(num_states)) for edge in edges
    ]


def choose_weights(candidates: Iterable[Weights], score: Callable[[Weights], float]) -> Weights:
    """The candidate with the highest score; among equals the closest to uniform, then the first."""
    scored = [(score(weights), weights) for weights in candidates]
    if not scored:
        raise ValueError("there are no weights to choose from: give at least one candidate.")
    if any(math.isnan(value) for value, _ in scored):
        raise ValueError(
            "a candidate's score is NaN, expected a number: check what the score measures."
        )

    def rank(item: tuple[float, Weights]) -> tuple[float, float]:
        value, weights = item
        return value, -math.fsum((weight - 1.0 / len(weights)) ** 2 for weight in weights)

    return max(scored, key=rank)[1]


@torch.no_grad()
def _merge(
    base: State, states: Sequence[State], rule: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """`base + rule(deltas)`, deltas `K *shape`, where tensors are floating-point."""
    for position, state in enumerate(states):
        _check_same_tensors(base, state, position)
    merged = {}
    for name in sorted(base):
        origin = base[name]
        if not origin.is_floating_point():
            if not all(torch.equal(origin, state[name]) for state in states):
                raise ValueError(
                    f"tensor {name!r} of {origin.dtype} differs between the states, and only "
                    "floating-point tensors can be merged: make it equal in all of them."
                )
            merged[name] = origin.clone()
            continue
        wide = torch.promote_types(origin.dtype, torch.float32)
        deltas = torch.stack([state[name].to(wide) - origin.to(wide) for state in states])
        merged[name] = (origin.to(wide) + rule(deltas)).to(origin.dtype)
    return {name: merged[name] for name in base}


def _weighted_sum(deltas: Float[Tensor, "K *shape"], weights: Weights) -> Float[Tensor, "*shape"]:
    return torch.tensordot(deltas.new_tensor(weights), deltas, dims=1)


def _trim(deltas: Float[Tensor, "K *shape"], density: float) -> Float[Tensor, "K *shape"]:
    """Zeros all but the `density` largest magnitudes of each task vector, at least one."""
    magnitudes = deltas.abs().reshape(len(deltas), -1)
    num_dropped = min(round((1.0 - density) * magnitudes.shape[1]), magnitudes.shape[1] - 1)
    smallest_kept = magnitudes.kthvalue(num_dropped + 1, dim=1, keepdim=True).values
    return deltas.masked_fill((magnitudes < smallest_kept).view_as(deltas), 0.0)


def _elect_and_average(deltas: Float[Tensor, "K *shape"]) -> Float[Tensor, "*shape"]:
    """The mean over the entries whose sign is that of the sum; zeros have no vote and no share."""
    elected = deltas.sum(dim=0).sign()
    agrees = deltas.sign() == elected
    total = deltas.masked_fill(~agrees, 0.0).sum(dim=0)
    return total / agrees.sum(dim=0).clamp(min=1)


def _weights(states: Sequence[State], weights: Sequence[float] | None) -> Weights:
    if not states:
        raise ValueError("there is nothing to merge: got no states, expected at least one.")
    if weights is None:
        return (1.0 / len(states),) * len(states)
    if len(weights) != len(states):
        raise ValueError(
            f"a merge has one weight per state: got {len(weights)} for {len(states)} states. "
            "Give as many weights as states."
        )
    return tuple(weights)


def _check_density(density: float) -> None:
    if not 0.0 < density <= 1.0:
        raise ValueError(
            f"density is the share of a task vector that stays: got {density}, "
            "expected 0 < density <= 1. Use 0.2, or 1 to keep all."
        )


def _check_same_tensors(base: State, state: State, position: int) -> None:
    for name in sorted(base.keys() ^ state.keys()):
        lacking = (
            f"state {position}" if name in base else "the base (of an average: its heaviest state)"
        )
        raise ValueError(
            f"tensor {name!r} is missing from {lacking}: states to merge have the same tensors. "
            "Merge models of one architecture, adapters with adapters."
        )
    for name, tensor in base.items():
        other = state[name]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            raise ValueError(
                f"tensor {name!r} is {tuple(other.shape)} {other.dtype} in state {position}, "
                f"expected {tuple(tensor.shape)} {tensor.dtype}. Cast or rebuild that state."
            )

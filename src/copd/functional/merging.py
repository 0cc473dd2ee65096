"""Merging of state dicts of one architecture.

Each method computes `base + rule(states - base)` per tensor, so merging copies returns the copy.
The arithmetic is in float32 or wider and is rounded once, to the dtype of each tensor. Merge
float32 master weights: bfloat16 rounds away most of what reinforcement learning changes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

State = Mapping[str, Tensor]
Weights = tuple[float, ...]


def average(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Average states, `sum w_k theta_k`: the Merge of the paper (arXiv 2604.27083).

    The differences are from the state of the largest weight, so weight 1 returns that state bit for
    bit.

    Args:
        states: K states with equal names, shapes and dtypes.
        weights: K weights that sum to 1; uniform by default.

    Returns:
        The averaged state.

    Raises:
        ValueError: If the states differ in their tensors or the weights do not sum to 1.

    Example:
        >>> average([{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}], [0.25, 0.75])
        {'w': tensor([2.5000])}
    """
    weights = _weights(states, weights)
    if not math.isclose(math.fsum(weights), 1.0, abs_tol=1e-6):
        raise ValueError(
            f"The weights of an average must sum to 1: got {weights}, sum {math.fsum(weights):g}. "
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
    """Add scaled task vectors, `base + scale * sum w_k (theta_k - base)` (arXiv 2212.04089).

    Args:
        base: The state that the others were trained from.
        states: K states with the tensors of the base.
        scale: With uniform weights, 1 is the average and K the sum; the paper's lambda is
            `scale / K`.
        weights: K weights, 1 / K by default. They may have any sum and be negative.

    Returns:
        The merged state.

    Raises:
        ValueError: If the states differ in their tensors or there are not K weights.
    """
    weights = _weights(states, weights)
    return _merge(base, states, lambda deltas: scale * _weighted_sum(deltas, weights))


def ties(
    base: State, states: Sequence[State], *, density: float = 0.2, scale: float = 1.0
) -> dict[str, Tensor]:
    """Merge by TIES (arXiv 2306.01708): trim task vectors, elect signs, average what agrees.

    The elected sign of an entry is that of the sum of its trimmed changes. Ties differ from
    mergekit's: where the sum is exactly zero the entry stays at its base value (mergekit elects
    plus), and all entries equal to the smallest one that passes the trim pass it too (mergekit
    keeps an exact number).

    Args:
        base: The state that the others were trained from.
        states: K states with the tensors of the base.
        density: Share of entries that pass the trim, the largest of each tensor and state; one at
            least.
        scale: Factor on the merged change.

    Returns:
        The merged state.

    Raises:
        ValueError: If the states differ in their tensors or not `0 < density <= 1`.
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
    """Merge by DARE (arXiv 2311.03099): drop changes at random, rescale the rest, merge.

    The rest is divided by `density`, as in the paper; mergekit instead rescales each task vector to
    the L1 norm it had. The draws depend on the seed and on the names and shapes of the tensors, not
    on their order, dtype or device.

    Args:
        base: The state that the others were trained from.
        states: K states with the tensors of the base.
        density: Probability that an entry is not dropped.
        scale: Factor on the merged change.
        seed: Seed of the draws.
        then: "linear" averages the task vectors, unbiased over seeds. "ties" elects signs and
            averages the undropped entries that agree, so agreeing task vectors grow.

    Returns:
        The merged state.

    Raises:
        ValueError: If the states differ in their tensors or not `0 < density <= 1`.
    """
    _check_density(density)
    generator = torch.Generator().manual_seed(seed)
    uniform = _weights(states, None)

    def rule(deltas: Tensor) -> Tensor:
        stays = torch.rand(deltas.shape, generator=generator).to(deltas.device) < density
        rescaled = deltas.masked_fill(~stays, 0.0) / density
        if then == "linear":
            return scale * _weighted_sum(rescaled, uniform)
        return scale * _elect_and_average(rescaled)

    return _merge(base, states, rule)


def simplex_grid(num_states: int, resolution: int) -> list[Weights]:
    """List all weights that are multiples of `1 / resolution` and sum to 1.

    Args:
        num_states: Weights per tuple, K.
        resolution: Steps from 0 to 1.

    Returns:
        `C(resolution + K - 1, K - 1)` tuples of K weights.

    Raises:
        ValueError: If an argument is less than 1.

    Example:
        >>> simplex_grid(2, 2)
        [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    """
    if num_states < 1 or resolution < 1:
        raise ValueError(
            f"A grid of weights needs at least one state and one step: got {num_states} states "
            f"and resolution {resolution}. Raise both to 1 or more."
        )
    bars = combinations(range(resolution + num_states - 1), num_states - 1)
    edges = ((-1, *bar, resolution + num_states - 1) for bar in bars)
    return [tuple((b - a - 1) / resolution for a, b in pairwise(edge)) for edge in edges]


def choose_weights(candidates: Iterable[Weights], score: Callable[[Weights], float]) -> Weights:
    """Choose the candidate with the highest score; of equals the most uniform, then the first.

    Args:
        candidates: Weights to choose from.
        score: Called once per candidate.

    Returns:
        The chosen weights.

    Raises:
        ValueError: If there is no candidate, or a score is NaN.
    """
    scored = [(score(weights), weights) for weights in candidates]
    if not scored:
        raise ValueError("There are no weights to choose from: give at least one candidate.")
    if any(math.isnan(value) for value, _ in scored):
        raise ValueError(
            "A candidate's score is NaN, expected a number: check what the score measures."
        )

    def rank(item: tuple[float, Weights]) -> tuple[float, float]:
        value, weights = item
        return value, -math.fsum((weight - 1.0 / len(weights)) ** 2 for weight in weights)

    return max(scored, key=rank)[1]


@torch.no_grad()
def _merge(
    base: State, states: Sequence[State], rule: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Apply `base + rule(deltas)`, deltas of shape `K *shape`, to floating-point tensors."""
    for position, state in enumerate(states):
        _check_same_tensors(base, state, position)
    merged = {}
    for name in sorted(base):
        origin = base[name]
        if not origin.is_floating_point():
            if not all(torch.equal(origin, state[name]) for state in states):
                raise ValueError(
                    f"Tensor {name!r} of {origin.dtype} differs between the states, and only "
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
    """Zero all but the `density` largest magnitudes of each task vector, at least one."""
    magnitudes = deltas.abs().reshape(len(deltas), -1)
    num_dropped = min(round((1.0 - density) * magnitudes.shape[1]), magnitudes.shape[1] - 1)
    threshold = magnitudes.kthvalue(num_dropped + 1, dim=1, keepdim=True).values
    return deltas.masked_fill((magnitudes < threshold).view_as(deltas), 0.0)


def _elect_and_average(deltas: Float[Tensor, "K *shape"]) -> Float[Tensor, "*shape"]:
    """Average the entries whose sign is that of their sum; zeros do not count."""
    elected = deltas.sum(dim=0).sign()
    agrees = deltas.sign() == elected
    return deltas.masked_fill(~agrees, 0.0).sum(dim=0) / agrees.sum(dim=0).clamp(min=1)


def _weights(states: Sequence[State], weights: Sequence[float] | None) -> Weights:
    if not states:
        raise ValueError("There is nothing to merge: got no states, expected at least one.")
    if weights is None:
        return (1.0 / len(states),) * len(states)
    if len(weights) != len(states):
        raise ValueError(
            f"A merge needs one weight per state: got {len(weights)} for {len(states)} states. "
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
        without_it = f"state {position}" if name in base else "the base (or the heaviest state)"
        raise ValueError(
            f"Tensor {name!r} is missing from {without_it}, but states to merge must have the same "
            "tensors. Merge models of one architecture, adapters with adapters."
        )
    for name, tensor in base.items():
        other = state[name]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            raise ValueError(
                f"Tensor {name!r} is {tuple(other.shape)} {other.dtype} in state {position}, "
                f"expected {tuple(tensor.shape)} {tensor.dtype}. Cast or rebuild that state."
            )

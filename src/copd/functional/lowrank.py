"""Merging of low-rank changes B A of weight matrices (LoRA, arXiv 2106.09685).

A state holds `PATH.lora_A`, shape `r in`, and `PATH.lora_B`, shape `out r`, for each changed
matrix. A and B are never averaged separately: the product of two means has cross terms B_i A_j.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

State = Mapping[str, Tensor]
_A, _B = ".lora_A", ".lora_B"


def sum_changes(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """Sum changes exactly: `sum w_k B_k A_k = [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]`.

    Args:
        states: Adapters of the same matrices.
        weights: One weight per state; a state of weight 0 is left out.

    Returns:
        One adapter, whose rank is the sum of the ranks.

    Example:
        >>> state = {"q.lora_A": torch.ones(1, 2), "q.lora_B": torch.ones(2, 1)}
        >>> sum_changes([state, state], [0.5, 2.0])["q.lora_B"]
        tensor([[0.5000, 2.0000],
                [0.5000, 2.0000]])
    """
    parts = [(s, w) for s, w in zip(states, weights, strict=True) if w != 0.0] or [(states[0], 0.0)]
    summed = {}
    for path in _paths(states):
        summed[path + _A] = torch.cat([state[path + _A] for state, _ in parts])
        summed[path + _B] = torch.cat([weight * state[path + _B] for state, weight in parts], dim=1)
    return summed


def nearest_of_rank(state: State, rank: int) -> dict[str, Tensor]:
    """Reduce each change to the nearest one of at most `rank` in Frobenius norm, by SVD.

    With B = Q R and A^T = P S, the singular values of B A are those of the small matrix R S^T.

    Args:
        state: An adapter.
        rank: Bound on the rank; a change within it is returned as it is.

    Returns:
        The reduced adapter.
    """
    nearest = dict(state)
    for path in _paths([state]):
        down, up = state[path + _A], state[path + _B]
        if len(down) > rank:
            left, inner = torch.linalg.qr(up)
            right, outer = torch.linalg.qr(down.mT)
            turn, values, turned = torch.linalg.svd(inner @ outer.mT)
            root = values[:rank].sqrt()
            nearest[path + _A] = root[:, None] * turned[:rank] @ right.mT
            nearest[path + _B] = left @ turn[:, :rank] * root
    return nearest


def merge_entries(
    states: Sequence[State], rule: Callable[[int, Sequence[Float[Tensor, "out in"]]], Tensor]
) -> dict[str, Tensor]:
    """Merge the full matrices B A with a rule that acts on their entries, such as TIES.

    Args:
        states: Adapters of the same matrices.
        rule: Takes the number of a matrix and its change in each state, shape `out in`, and returns
            the merged change.

    Returns:
        One adapter of full rank: one of the two factors is the identity.
    """
    merged = {}
    for number, path in enumerate(_paths(states)):
        change = rule(number, [state[path + _B] @ state[path + _A] for state in states])
        rows, columns = change.shape
        is_wide = columns > rows
        identity = torch.eye(min(rows, columns), dtype=change.dtype, device=change.device)
        merged[path + _A] = change if is_wide else identity
        merged[path + _B] = identity if is_wide else change
    return merged


def _paths(states: Sequence[State]) -> list[str]:
    """Return the changed matrices; refuse states that change different ones."""
    names = sorted(states[0])
    for position, state in enumerate(states):
        if sorted(state) != names:
            lacking = min(state.keys() ^ states[0].keys())
            raise ValueError(
                f"Adapters to merge must change the same matrices: {lacking!r} is missing from "
                f"state 0 or state {position}. Train them with the same model.lora.target_modules."
            )
    return [name.removesuffix(_A) for name in names if name.endswith(_A)]

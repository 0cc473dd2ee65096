"""Low-rank changes B A of weight matrices: summed, reduced, merged entry by entry.

A state holds `PATH.lora_A` and `PATH.lora_B` for every changed matrix. A and B are never averaged
apart: the product of two means has cross terms B_i A_j of changes that belong to nobody. Knows
named tensors, not models, and not the scale all changes of a run share.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

State = Mapping[str, Tensor]
_A, _B = ".lora_A", ".lora_B"


def sum_changes(states: Sequence[State], weights: Sequence[float]) -> dict[str, Tensor]:
    """`sum w_k B_k A_k` as one change `[w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]`: exact.

    Its rank is the sum of theirs. A change of weight 0 takes no room.
    """
    parts = [(s, w) for s, w in zip(states, weights, strict=True) if w != 0.0] or [(states[0], 0.0)]
    summed = {}
    for path in _paths(states):
        summed[path + _A] = torch.cat([state[path + _A] for state, _ in parts])
        summed[path + _B] = torch.cat([weight * state[path + _B] for state, weight in parts], dim=1)
    return summed


def nearest_of_rank(state: State, rank: int) -> dict[str, Tensor]:
    """The changes of at most `rank` closest to these in Frobenius norm, by singular values.

    With B = Q R and A^T = P S the singular values of B A are those of the small R S^T.
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
    """A rule over the entries of the changes themselves, matrix by matrix: `rule(number, changes)`.

    What comes out has no low rank: one factor is then the identity.
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
    """The changed matrices, the same in every state."""
    names = sorted(states[0])
    for position, state in enumerate(states):
        if sorted(state) != names:
            lacking = sorted(state.keys() ^ states[0].keys())[0]
            raise ValueError(
                f"adapters to merge change the same matrices: {lacking!r} is in one and not in the "
                f"other, number {position}. Train them with the same model.lora.target_modules."
            )
    return [name.removesuffix(_A) for name in names if name.endswith(_A)]

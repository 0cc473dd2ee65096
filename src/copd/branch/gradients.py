"""The gradients of an update's batches, kept apart to measure their cosines."""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

Gradient = list[Tensor | None]
"""One tensor per parameter; None where the batch did not touch it."""


class Gradients:
    """Takes each batch's gradient from the parameters and restores their sum.

    Nothing is copied: with K batches K gradients are in memory instead of one.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._gradients: dict[str, Gradient] = {}

    def take(self, action: str) -> None:
        """Move what `.grad` holds to this action, so that the next batch starts from nothing."""
        self._gradients[action] = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None

    def restore_sum(self) -> dict[str, float]:
        """Put the sum of all gradients back into `.grad`.

        Returns:
            The gradient norm of each batch's own loss, and the cosine of every pair of batches,
            left out where a gradient is zero. A batch's gradient is that of its loss times its
            weight in the update, 1 / K, so its norm is multiplied by K.
        """
        norms = {action: math.sqrt(_dot(g, g)) for action, g in self._gradients.items()}
        metrics = {f"{action}/grad_norm": len(norms) * norm for action, norm in norms.items()}
        for a, b in combinations(self._gradients, 2):
            if scale := norms[a] * norms[b]:
                dot = _dot(self._gradients[a], self._gradients[b])
                metrics[f"update/cosine/{a}|{b}"] = dot / scale
        for parameter, *parts in zip(self._parameters, *self._gradients.values(), strict=True):
            parameter.grad = _sum([part for part in parts if part is not None])
        self._gradients = {}
        return metrics


def _dot(a: Gradient, b: Gradient) -> float:
    """Sum over all parameters, in float32 within a parameter and float64 across them."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        return 0.0
    dots = [torch.dot(x.flatten().float(), y.flatten().float()) for x, y in pairs]
    return float(torch.stack(dots).double().sum())


def _sum(parts: list[Tensor]) -> Tensor | None:
    """Sum in place, in the order of the batches."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0] if parts else None

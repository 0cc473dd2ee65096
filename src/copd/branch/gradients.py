"""How far the lessons of one update agree: their gradients, apart before they are added up.

Knows no model and no losses.
"""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

Gradient = list[Tensor | None]
"""Of every parameter; None where a lesson did not touch it."""


class Gradients:
    """Takes each lesson's gradient from the parameters, and gives their sum back.

    Nothing is copied: with K lessons there are K gradients instead of one.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._lessons: dict[str, Gradient] = {}

    def take(self, action: str) -> None:
        """What `.grad` holds is this lesson's; the next one starts from nothing."""
        self._lessons[action] = [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None

    def restore_sum(self) -> dict[str, float]:
        """Leaves the sum in `.grad`; returns the norms, and the cosine of every pair.

        A lesson enters with its share of the update, one of K, so K times its norm is that of its
        own loss; a cosine has no scale. It does not exist where a gradient is zero, and is then
        left out.
        """
        shares = {action: math.sqrt(_dot(g, g)) for action, g in self._lessons.items()}
        metrics = {f"{action}/grad_norm": len(shares) * share for action, share in shares.items()}
        for a, b in combinations(self._lessons, 2):
            if scale := shares[a] * shares[b]:
                dot = _dot(self._lessons[a], self._lessons[b])
                metrics[f"update/cosine/{a}|{b}"] = dot / scale
        for parameter, *parts in zip(self._parameters, *self._lessons.values(), strict=True):
            parameter.grad = _add_up([part for part in parts if part is not None])
        self._lessons = {}
        return metrics


def _dot(a: Gradient, b: Gradient) -> float:
    """The inner product over all parameters: float32 within one, float64 across them."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not pairs:
        return 0.0
    dots = [torch.dot(x.flatten().float(), y.flatten().float()) for x, y in pairs]
    return float(torch.stack(dots).double().sum())


def _add_up(parts: list[Tensor]) -> Tensor | None:
    """In place, in the order of the lessons."""
    for part in parts[1:]:
        parts[0].add_(part)
    return parts[0] if parts else None

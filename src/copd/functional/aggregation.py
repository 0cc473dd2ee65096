"""Weights that reduce per-token losses to the loss of an update."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Aggregation = Literal["token", "sequence"]


def token_weights(lengths: Int[Tensor, "B"], mode: Aggregation) -> Float[Tensor, "N"]:
    """Return weights for which `sum(weights * per_token_loss)` is the loss of an update.

    Compute them from the lengths of the whole update and slice them: every split into micro-batches
    then gives the same gradient.

    Args:
        lengths: Tokens of each completion, shape `B`, at least one each (the end token).
        mode: "token" is the mean over all tokens, `1 / N` (DAPO, arXiv 2503.14476). "sequence" is
            the mean over sequences of their means, `1 / (B |y_i|)`: L_RLVR of the paper and GRPO.

    Returns:
        Weights of the packed tokens, shape `N`; they sum to 1.

    Example:
        >>> token_weights(torch.tensor([1, 2]), "sequence")
        tensor([0.5000, 0.2500, 0.2500])
    """
    assert len(lengths) > 0, "an update has at least one sequence"
    assert bool((lengths > 0).all()), "a sequence has at least one token, the end token"
    num_tokens = int(lengths.sum())
    if mode == "token":
        return torch.full((num_tokens,), 1.0 / num_tokens, device=lengths.device)
    assert mode == "sequence", f"unknown aggregation {mode!r}"
    per_sequence = 1.0 / (len(lengths) * lengths.float())
    return per_sequence.repeat_interleave(lengths)

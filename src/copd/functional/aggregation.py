"""From per-token values to one number per update or sequence. Knows lengths, not meanings."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Aggregation = Literal["token", "sequence"]


def token_weights(lengths: Int[Tensor, "B"], mode: Aggregation) -> Float[Tensor, "N"]:
    """Weights that make `sum(weights * per_token_loss)` the loss of a whole update.

    `token` is `1 / N`, the mean over all tokens (DAPO, arXiv 2503.14476). `sequence` is `1 / (B
    |y_i|)`, the mean over sequences of their own means: the paper's L_RLVR and GRPO's.

    Compute them once from the lengths of the whole update, then slice: any split into micro-batches
    gives the same gradient. Every sequence has at least one token, the end token.
    """
    assert len(lengths) > 0, "an update has at least one sequence"
    assert bool((lengths > 0).all()), "a sequence has at least one token, the end token"
    num_tokens = int(lengths.sum())
    if mode == "token":
        return torch.full((num_tokens,), 1.0 / num_tokens, device=lengths.device)
    assert mode == "sequence", f"unknown aggregation {mode!r}"
    per_sequence = 1.0 / (len(lengths) * lengths.float())
    return per_sequence.repeat_interleave(lengths)

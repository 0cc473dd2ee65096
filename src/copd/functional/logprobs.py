"""From hidden states and a vocabulary head to log-probabilities. Knows no model and no packing.

Row `n` of `hidden` is the state that predicts token `n`: aligning the two is the caller's. All
results are in float32 or wider whatever the input. `banned` tokens have log-probability -inf and
receive no gradient.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    token_ids: Int[Tensor, "N"],
    *,
    banned: Bool[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Each token's log-probability, and the entropy of the distribution it was drawn from.

    Differentiable in `hidden` and `head`. At most `chunk_size` rows of logits exist at a time: they
    are made again in the backward pass instead of kept. The entropy is a metric and carries no
    gradient. Under autocast both matrices are cast once, here.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, head = hidden.to(dtype), head.to(dtype)
    _check_temperature(temperature)
    return _TokenLogprobs.apply(hidden, head, token_ids.long(), banned, temperature, chunk_size)


def full_logprobs(
    hidden: Float[Tensor, "M D"],
    head: Float[Tensor, "V D"],
    *,
    banned: Bool[Tensor, "V"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "M V"]:
    """The whole distribution at a few positions, differentiable; the caller keeps M small."""
    _check_temperature(temperature)
    return _logits(hidden, head, banned, temperature).log_softmax(dim=-1)


@torch.no_grad()
def topk_logprobs(
    hidden: Float[Tensor, "M D"],
    head: Float[Tensor, "V D"],
    *,
    k: int,
    banned: Bool[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> tuple[Float[Tensor, "M K"], Int[Tensor, "M K"]]:
    """The k most probable tokens, best first: log-probabilities (not renormalised) and ids.

    What a teacher says about a student's tokens, so without gradient. With more `k` than allowed
    tokens the banned ones come last, at -inf.
    """
    vocabulary = head.shape[0]
    if not 0 < k <= vocabulary:
        raise ValueError(f"top-k needs 1 <= k <= {vocabulary}, the vocabulary: got {k}. Lower k.")
    chunks = [
        full_logprobs(rows, head, banned=banned, temperature=temperature).topk(k, dim=-1)
        for rows in hidden.split(chunk_size)
    ]
    return torch.cat([chunk.values for chunk in chunks]), torch.cat([c.indices for c in chunks])


def _logits(
    hidden: Float[Tensor, "M D"],
    head: Float[Tensor, "V D"],
    banned: Bool[Tensor, "V"] | None,
    temperature: float,
) -> Float[Tensor, "M V"]:
    logits = hidden @ head.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits if temperature == 1.0 else logits / temperature
    return logits if banned is None else logits.masked_fill_(banned, -torch.inf)


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise ValueError(
            f"temperature must be positive: got {temperature}. "
            "Greedy decoding has no log-probabilities; use 1.0 for the policy itself."
        )


class _TokenLogprobs(torch.autograd.Function):
    """`log p(y) = z_y - logsumexp z`; its gradient `g (onehot(y) - p)` needs `z` made again.

    Against generic checkpointing this keeps the `logsumexp`, and adds up the head's gradient
    in place and in float32 instead of in one `V D` tensor per chunk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        token_ids: Tensor,
        banned: Tensor | None,
        temperature: float,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies, normalisers = [], [], []
        for rows, ids in zip(hidden.split(chunk_size), token_ids.split(chunk_size), strict=True):
            logits = _logits(rows, head, banned, temperature)
            normaliser = logits.logsumexp(dim=-1, keepdim=True)
            scores = logits.sub_(normaliser)
            logprobs.append(scores.gather(-1, ids[:, None])[:, 0])
            entropies.append(torch.special.entr(scores.exp_()).sum(dim=-1))  # entr(0) is 0
            normalisers.append(normaliser)
        entropy = torch.cat(entropies)
        ctx.save_for_backward(hidden, head, token_ids, banned, torch.cat(normalisers))
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, head, token_ids, banned, normalisers = ctx.saved_tensors
        needs_hidden, needs_head, *_ = ctx.needs_input_grad
        grad_rows: list[Tensor] = []
        grad_head = torch.zeros_like(head, dtype=normalisers.dtype) if needs_head else None
        grad_logprobs = grad_outputs[0][:, None] / ctx.temperature
        packed = (hidden, token_ids[:, None], normalisers, grad_logprobs)
        for rows, ids, normaliser, grad in zip(
            *(part.split(ctx.chunk_size) for part in packed), strict=True
        ):
            probabilities = _logits(rows, head, banned, ctx.temperature).sub_(normaliser).exp_()
            at_token = grad if banned is None else grad.masked_fill(banned[ids], 0.0)
            grad_logits = probabilities.mul_(-grad).scatter_add_(-1, ids, at_token).to(head.dtype)
            if needs_hidden:
                grad_rows.append(grad_logits @ head)
            if grad_head is not None:
                grad_head += grad_logits.T @ rows
        grad_hidden = torch.cat(grad_rows) if needs_hidden else None
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), *[None] * 4

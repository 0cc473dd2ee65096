"""Log-probabilities from hidden states and a vocabulary head, in chunks over the tokens.

Row n of `hidden` is the state that predicts token n. Results are in float32 or wider for every
input dtype. Banned tokens have log-probability -inf and receive no gradient.
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
    """Compute the log-probability of each token and the entropy of its distribution.

    Differentiable in `hidden` and `head`. At most `chunk_size` rows of logits exist at a time; the
    backward pass computes them again. Under autocast both matrices are cast once.

    Args:
        hidden: Hidden states that predict the tokens, shape `N D`.
        head: Vocabulary head, shape `V D`.
        token_ids: The tokens, shape `N`.
        banned: True for tokens that cannot be sampled, shape `V`.
        temperature: Divides the logits.
        chunk_size: Rows of logits at a time.

    Returns:
        Log-probabilities, shape `N`, and entropies in nats, shape `N`, without gradient.

    Raises:
        ValueError: If `temperature` is not positive.

    Example:
        >>> logprobs, _ = token_logprobs(torch.ones(2, 3), torch.zeros(4, 3), torch.tensor([0, 1]))
        >>> logprobs
        tensor([-1.3863, -1.3863])
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, head = hidden.to(dtype), head.to(dtype)
    return _TokenLogprobs.apply(hidden, head, token_ids.long(), banned, temperature, chunk_size)


def full_logprobs(
    hidden: Float[Tensor, "M D"],
    head: Float[Tensor, "V D"],
    *,
    banned: Bool[Tensor, "V"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "M V"]:
    """Compute the whole distribution at a few positions, differentiably; keep M small.

    Args:
        hidden: Hidden states, shape `M D`.
        head: Vocabulary head, shape `V D`.
        banned: True for tokens that cannot be sampled, shape `V`.
        temperature: Divides the logits.

    Returns:
        Log-probabilities, shape `M V`.

    Raises:
        ValueError: If `temperature` is not positive.
    """
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
    """Find the k most probable tokens at each position, best first, without gradient.

    Args:
        hidden: Hidden states, shape `M D`.
        head: Vocabulary head, shape `V D`.
        k: Tokens per position, 1 to V. Banned tokens come last, at -inf.
        banned: True for tokens that cannot be sampled, shape `V`.
        temperature: Divides the logits.
        chunk_size: Rows of logits at a time.

    Returns:
        Log-probabilities (not renormalised) and token ids, shape `M K` each.

    Raises:
        ValueError: If `k` or `temperature` is out of its range.
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
    if temperature <= 0:
        raise ValueError(
            f"temperature must be positive: got {temperature}. "
            "Greedy decoding has no log-probabilities; use 1.0 for the policy itself."
        )
    logits = hidden @ head.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits if temperature == 1.0 else logits / temperature
    return logits if banned is None else logits.masked_fill_(banned, -torch.inf)


class _TokenLogprobs(torch.autograd.Function):
    """`log p(y) = z_y - logsumexp z`, whose gradient is `g (onehot(y) - p)`.

    Unlike generic checkpointing it saves the `logsumexp`, and sums the gradient of the head in
    place and in float32 instead of in one `V D` tensor per chunk.
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

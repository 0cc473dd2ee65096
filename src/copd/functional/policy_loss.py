"""The clipped policy-gradient surrogate, per token."""

import torch
from jaxtyping import Float
from torch import Tensor

_MAX_LOG_RATIO = 20.0
"""A larger log-ratio would overflow in exp and turn 0 * inf into NaN."""


def clipped_surrogate(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, "*shape"], dict[str, Float[Tensor, ""]]]:
    """Compute the clipped loss `-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)` per token.

    L_RLVR of the paper: PPO's ratio `rho = exp(logprobs - old_logprobs)` (arXiv 1707.06347) with
    DAPO's asymmetric bounds (arXiv 2503.14476). Ratios are capped at exp(20) and pass no gradient
    beyond. With `old_logprobs = logprobs.detach()` the gradient is that of REINFORCE.

    Args:
        logprobs: Log-probabilities of the tokens under the trained policy; the only differentiable
            argument. Any shape, the same for all three.
        old_logprobs: Log-probabilities under the policy that sampled.
        advantages: Advantages of the tokens.
        clip_low: The ratio is clipped from below at `1 - clip_low`.
        clip_high: The ratio is clipped from above at `1 + clip_high`.
        dual_clip: Bounds the loss of a negative advantage by `-dual_clip * A` (arXiv 1912.09729).

    Returns:
        The loss per token, and metrics: the mean and maximum ratio, and the fraction of tokens
        whose gradient each bound removed. Weigh the means of micro-batches by their tokens.

    Raises:
        ValueError: If a bound is out of its range.

    Example:
        >>> loss, metrics = clipped_surrogate(torch.zeros(2), torch.zeros(2), torch.ones(2))
        >>> loss
        tensor([-1., -1.])
    """
    _check_bounds(clip_low, clip_high, dual_clip)
    advantages = advantages.detach()
    ratio = (logprobs - old_logprobs.detach()).clamp(max=_MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is not None:
        bounded = torch.maximum(objective, dual_clip * advantages)
        objective = torch.where(advantages < 0, bounded, objective)

    rho, negative, positive = ratio.detach(), advantages < 0, advantages > 0
    removed = {
        "clip_low_fraction": negative & (rho < 1.0 - clip_low),
        "clip_high_fraction": positive & (rho > 1.0 + clip_high),
    }
    if dual_clip is not None:
        removed["dual_clip_fraction"] = negative & (rho > dual_clip)
    metrics = {name: mask.to(rho.dtype).mean() for name, mask in removed.items()}
    return -objective, metrics | {"ratio_mean": rho.mean(), "ratio_max": rho.max()}


def _check_bounds(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not 0.0 <= clip_low < 1.0:
        raise ValueError(
            "clip_low is how far the ratio may fall below 1, at least 0 and less than 1: "
            f"got {clip_low}, use 0.2."
        )
    if clip_high < 0.0:
        raise ValueError(
            "clip_high is how far the ratio may rise above 1, at least 0: "
            f"got {clip_high}, use 0.28."
        )
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(
            f"dual_clip must exceed 1: got {dual_clip}. Use 3.0, or None to leave it out."
        )

"""The clipped policy-gradient surrogate, per token. Does not know who gave the advantage."""

import torch
from jaxtyping import Float
from torch import Tensor

_MAX_LOG_RATIO = 20.0
"""A larger one is a diverged policy, and would overflow in exp and turn 0 * inf into NaN."""


def clipped_surrogate(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, "*shape"], dict[str, Float[Tensor, ""]]]:
    """The per-token loss `-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)` and its metrics.

    The paper's L_RLVR with PPO's ratio `rho = exp(logprobs - old_logprobs)`; the bounds differ as
    in DAPO (arXiv 2503.14476). `dual_clip` c > 1 also keeps the objective of a negative advantage
    above `c A`, that is the loss at most `-c A` (arXiv 1912.09729).

    Only `logprobs` gets a gradient. For one update per batch pass `logprobs.detach()` as
    `old_logprobs`: the ratio is 1 and the gradient is REINFORCE's. Ratios stop at exp(20), and pass
    no gradient beyond. Metrics are means over the given tokens (`ratio_max` a maximum); a clip
    fraction counts the tokens whose gradient that bound removed. Over micro-batches, weigh them by
    token counts.
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
    metrics = {name: claim.to(rho.dtype).mean() for name, claim in removed.items()}
    return -objective, metrics | {"ratio_mean": rho.mean(), "ratio_max": rho.max()}


def _check_bounds(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not 0.0 <= clip_low < 1.0:
        raise ValueError(f"clip_low is how far a ratio may fall below 1: got {clip_low}, use 0.2.")
    if clip_high < 0.0:
        raise ValueError(
            f"clip_high is how far a ratio may rise above 1: got {clip_high}, use 0.28."
        )
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(
            f"dual_clip must exceed 1: got {dual_clip}. Use 3.0, or None to leave it out."
        )

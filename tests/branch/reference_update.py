"""An update computed by hand: plain transformers passes, a row per completion, plain formulas.

Nothing here uses copd's functional, branch or policy code, except the weights and token ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from copd.config import Config
from copd.types import TrainingBatch

Weights = dict[str, Tensor]
Moments = dict[str, tuple[Tensor, Tensor, int]]


def row_logprobs(model: Any, prompt: Tensor, completion: np.ndarray, banned: Tensor) -> Tensor:
    """Return log-probabilities at each token of one completion, shape `T V`."""
    row = torch.cat([prompt, torch.from_numpy(completion.astype(np.int64))])
    logits = model(input_ids=row[None]).logits[0, len(prompt) - 1 : -1]
    return logits.masked_fill(banned, -math.inf).log_softmax(-1)


def buckets(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Return probabilities of some tokens and of the rest together, shape `T K+1`."""
    top = logprobs.exp().gather(-1, ids)
    return torch.cat([top, (1 - top.sum(-1, keepdim=True)).clamp_min(0)], -1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.clamp_min(1e-30).log() - q.clamp_min(1e-30).log()), 0).sum(-1)


def divergence(form: str, student: Tensor, teacher: Tensor) -> Tensor:
    mean = (student + teacher) / 2
    return {
        "reverse": kl(student, teacher),
        "forward": kl(teacher, student),
        "jsd": (kl(student, mean) + kl(teacher, mean)) / 2,
    }[form]


def token_signals(batches: Sequence[TrainingBatch], config: Config) -> list[Tensor]:
    """Return advantages per token before the control variate; zeros for direct losses."""
    signals, deltas = [], {}
    for number, batch in enumerate(batches):
        rollouts = batch.rollouts
        if batch.teacher is None:
            rewards = rollouts.rewards.astype(np.float64)
            advantages = rewards - rewards.mean(1, keepdims=True)
            if config.loss.scale_advantages:
                advantages /= rewards.std(1, ddof=1, keepdims=True) + config.loss.advantage_eps
            signals.append(torch.from_numpy(advantages.reshape(-1).repeat(rollouts.lengths)))
            continue
        signal = torch.from_numpy(batch.teacher.logprobs - rollouts.logprobs).double()
        signals.append(torch.zeros_like(signal))
        if config.distill.type == "sampled":
            if (bound := config.distill.log_ratio_clamp) is not None:
                signal = signal.clamp(-bound, bound)
            if batch.ref_logprobs is not None:
                further = torch.from_numpy(batch.teacher.logprobs - batch.ref_logprobs).double()
                signal = signal + (config.distill.extrapolation - 1) * further
            deltas[number] = signal
    if deltas:
        spread = torch.cat([*deltas.values()]).std(correction=0)
        for number, signal in deltas.items():
            if getattr(config.distill, "match_scale", False):
                signal = signal * (spread / signal.std(correction=0)).clamp(0.25, 4)
            signals[number] = batches[number].beta * signal
    return signals


def batch_loss(
    model: Any,
    prompts: Sequence[Tensor],
    batch: TrainingBatch,
    signal: Tensor,
    config: Config,
    banned: Tensor,
) -> Tensor:
    rollouts, teacher, loss, distill = batch.rollouts, batch.teacher, config.loss, config.distill
    group_size = len(rollouts.lengths) // len(prompts)
    ends = np.cumsum(rollouts.lengths)
    per_row = []
    for row, (end, length) in enumerate(zip(ends, rollouts.lengths, strict=True)):
        tokens = slice(int(end - length), int(end))
        ids = torch.from_numpy(rollouts.token_ids[tokens].astype(np.int64))[:, None]
        full = row_logprobs(model, prompts[row // group_size], rollouts.token_ids[tokens], banned)
        own = (full / rollouts.temperature).log_softmax(-1).gather(-1, ids)[:, 0]
        if teacher is not None and distill.type != "sampled":
            k = distill.top_k if distill.type == "topk" else full.shape[1]
            top = torch.from_numpy(teacher.topk_ids[tokens, :k].astype(np.int64))
            theirs = torch.from_numpy(teacher.topk_logprobs[tokens, :k]).exp()
            theirs = torch.cat([theirs, (1 - theirs.sum(-1, keepdim=True)).clamp_min(0)], -1)
            per_row.append(batch.beta * divergence(distill.form, buckets(full, top), theirs))
            continue
        advantages = signal[tokens].float()
        if teacher is not None and distill.type == "sampled" and distill.control_variate:
            top = torch.from_numpy(teacher.topk_ids[tokens].astype(np.int64))
            theirs = torch.from_numpy(teacher.topk_logprobs[tokens]).exp()
            theirs = torch.cat([theirs, (1 - theirs.sum(-1, keepdim=True)).clamp_min(0)], -1)
            advantages = advantages + batch.beta * kl(buckets(full.detach(), top), theirs)
        ratio = (own - torch.from_numpy(rollouts.logprobs[tokens])).exp()
        clipped = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
        token_loss = -torch.minimum(ratio * advantages, clipped * advantages)
        if loss.dual_clip is not None:
            bounded = torch.minimum(token_loss, -loss.dual_clip * advantages)
            token_loss = torch.where(advantages < 0, bounded, token_loss)
        per_row.append(token_loss)
    if loss.aggregation == "token":
        return torch.cat(per_row).mean()
    return torch.stack([row.mean() for row in per_row]).mean()


def adamw(
    weights: Weights, gradients: Mapping[str, Tensor | None], moments: Moments, config: Config
) -> Weights:
    """Make one AdamW update; parameters without a gradient stay as they are."""
    settings, nothing = config.optimizer, torch.zeros(0)
    number = moments.get("", (nothing, nothing, 0))[2] + 1
    moments[""] = (nothing, nothing, number)
    present = [g for g in gradients.values() if g is not None]
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in present))
    scale = min(1.0, settings.max_grad_norm / (norm + 1e-6))
    rate = settings.learning_rate
    if settings.warmup_steps:
        rate *= min(1.0, number / settings.warmup_steps)
    updated = {}
    for name, weight in weights.items():
        gradient = gradients[name]
        if gradient is None:
            updated[name] = weight
            continue
        first, second, steps = moments.get(
            name, (torch.zeros_like(weight), torch.zeros_like(weight), 0)
        )
        a, b = settings.betas
        first = a * first + (1 - a) * scale * gradient
        second = b * second + (1 - b) * (scale * gradient) ** 2
        steps += 1
        moments[name] = (first, second, steps)
        step = (first / (1 - a**steps)) / ((second / (1 - b**steps)).sqrt() + settings.eps)
        updated[name] = weight * (1 - rate * settings.weight_decay) - rate * step
    return updated


def update_by_hand(
    model: Any,
    prompts: Sequence[Sequence[Tensor]],
    batches: Sequence[TrainingBatch],
    config: Config,
    banned: Tensor,
    moments: Moments,
) -> tuple[Weights, float]:
    """Return the weights after an update on `batches`, and the gradient norm before clipping."""
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = None
    signals = token_signals(batches, config)
    losses = [
        batch_loss(model, own, batch, signal, config, banned)
        for own, batch, signal in zip(prompts, batches, signals, strict=True)
    ]
    (sum(losses, torch.zeros(())) / len(losses)).backward()
    gradients = {name: p.grad for name, p in parameters.items()}
    present = [g.double().norm() for g in gradients.values() if g is not None]
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    return adamw(weights, gradients, moments, config), float(torch.stack(present).norm())

"""Per-token advantages of training batches: from rewards (RLVR) or from a teacher (OPD)."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from copd.config import DistillConfig, LossConfig, SampledDistill
from copd.functional import (
    domain_scale,
    group_relative,
    reward_extrapolation,
    sampled_reverse_kl,
)
from copd.types import RolloutBatch, TrainingBatch


def reward_advantages(rollouts: RolloutBatch, loss: LossConfig) -> Float[Tensor, "P G"]:
    """Return the paper's A_i, each reward relative to its group."""
    return group_relative(
        torch.from_numpy(rollouts.rewards), eps=loss.advantage_eps, scale=loss.scale_advantages
    )


def token_advantages(
    batches: Sequence[TrainingBatch], loss: LossConfig, distill: DistillConfig
) -> list[Float[Tensor, "N"] | None]:
    """Return one advantage per token for each batch of an update.

    Args:
        batches: The training batches of one update.
        loss: How rewards become advantages.
        distill: How teacher outputs become advantages.

    Returns:
        For an RLVR batch A_i of each token's completion, for an OPD batch `beta * delta_t`. None
        for OPD batches if distillation is a direct loss, which needs no advantages.
    """
    advantages: list[Tensor | None] = []
    for batch in batches:
        if batch.teacher is None:
            per_rollout = reward_advantages(batch.rollouts, loss).flatten()
            lengths = torch.from_numpy(batch.rollouts.lengths)
            advantages.append(per_rollout.repeat_interleave(lengths))
        elif isinstance(distill, SampledDistill):
            advantages.append(_delta(batch, distill))
        else:
            advantages.append(None)
    if not isinstance(distill, SampledDistill):
        return advantages
    cross = [i for i, batch in enumerate(batches) if batch.teacher is not None]
    deltas = [delta for i in cross if (delta := advantages[i]) is not None]
    if distill.match_scale and deltas:
        spread = float(torch.cat(deltas).std(correction=0))
        deltas = [domain_scale(delta, spread) for delta in deltas]
    for i, delta in zip(cross, deltas, strict=True):
        advantages[i] = batches[i].beta * delta
    return advantages


def _delta(batch: TrainingBatch, distill: SampledDistill) -> Float[Tensor, "N"]:
    """Return the paper's delta_t, with the options of `distill` applied."""
    assert batch.teacher is not None, "only a scored batch has a delta"
    teacher_logprobs = torch.from_numpy(batch.teacher.logprobs)
    delta = sampled_reverse_kl(
        student_logprobs=torch.from_numpy(batch.rollouts.logprobs),
        teacher_logprobs=teacher_logprobs,
        clamp=distill.log_ratio_clamp,
    )
    if batch.ref_logprobs is None:
        return delta
    return reward_extrapolation(
        delta,
        teacher_logprobs=teacher_logprobs,
        ref_logprobs=torch.from_numpy(batch.ref_logprobs),
        strength=distill.extrapolation,
    )

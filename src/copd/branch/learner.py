"""The loss of a training batch, its gradient, and the metrics measured on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from copd.branch.micro_batches import Forward, MicroBatch
from copd.config import FullDistill, LossConfig, MonitorConfig, SampledDistill, TopKDistill
from copd.functional import (
    chunked_divergence_loss,
    clipped_surrogate,
    control_variate,
    entropy,
    full_logprobs,
    reverse_kl,
    symmetric_kl,
    token_logprobs,
    token_weights,
    topk_buckets,
    topk_overlap,
)
from copd.policy import PackedStates, Prompt, SharedPrefix
from copd.types import TeacherOutputs, TrainingBatch

Distill = SampledDistill | TopKDistill | FullDistill


@dataclass
class BatchStatistics:
    """Per-token values of one training batch, collected over its micro-batches."""

    loss: float = 0.0
    logprobs: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    num_clipped: float = 0.0
    overlap: list[Tensor] = field(default_factory=list)
    symmetric_kl: list[Tensor] = field(default_factory=list)
    entropy_gap: list[Tensor] = field(default_factory=list)

    @classmethod
    def join(cls, shards: Sequence["BatchStatistics"]) -> "BatchStatistics":
        """Join the statistics of a batch's shards, in their order."""
        joined = cls()
        for shard in shards:
            for name, values in vars(shard).items():
                setattr(joined, name, getattr(joined, name) + values)
        return joined


@dataclass(frozen=True, eq=False)
class Learner:
    """Computes gradients of training batches with the settings of one branch."""

    forward: Forward
    loss: LossConfig
    distill: Distill
    monitor: MonitorConfig

    def backward(
        self,
        batch: TrainingBatch,
        advantages: Float[Tensor, "N"] | None,
        weight: float,
        *,
        prompts: Sequence[Prompt] | SharedPrefix,
        shard: slice,
    ) -> BatchStatistics:
        """Add the gradient of a batch's weighted loss to the policy's parameters.

        Args:
            batch: The whole batch.
            advantages: One per token of the whole batch; None for a direct distillation loss.
            weight: Factor on the batch's loss.
            prompts: Prompts of the shard, or the prefix that sampling made of them.
            shard: The problems whose contribution to the loss is added.

        Returns:
            Statistics of the shard. They end early if the loss is not finite.
        """
        rollouts, statistics = batch.rollouts, BatchStatistics()
        leaves = prompts.cut() if isinstance(prompts, SharedPrefix) else prompts
        lengths = torch.from_numpy(rollouts.lengths)
        weights = weight * token_weights(lengths, self.loss.aggregation)
        prompt_lengths = rollouts.prompt_lengths[shard].tolist()
        compute = partial(self._losses, batch, advantages, statistics)
        passes = self.forward.run(rollouts, leaves, prompt_lengths, compute, first=shard.start)
        for part, losses in passes:
            loss = (losses * weights[part.tokens].to(losses.device)).sum()
            loss.backward()
            statistics.loss += float(loss.detach()) / weight
            if not math.isfinite(statistics.loss):
                return statistics
        if isinstance(prompts, SharedPrefix) and isinstance(leaves, SharedPrefix):
            prompts.backward(leaves)
        return statistics

    def _losses(
        self,
        batch: TrainingBatch,
        advantages: Tensor | None,
        statistics: BatchStatistics,
        part: MicroBatch,
        states: PackedStates,
    ) -> Float[Tensor, "N"]:
        """Return the loss of each token of a micro-batch, unweighted; fill the statistics."""
        policy, teacher = self.forward.policy, batch.teacher
        logprobs, entropies = token_logprobs(
            states.hidden,
            policy.head,
            states.token_ids,
            banned=policy.banned,
            temperature=batch.rollouts.temperature,
        )
        statistics.logprobs.append(logprobs.detach())
        statistics.entropy.append(entropies)
        if teacher is not None:
            self._compare_with_teacher(teacher, part, states, statistics)
        if advantages is None:
            assert teacher is not None and not isinstance(self.distill, SampledDistill)
            return batch.beta * self._direct_loss(teacher, part, states)
        at_token = advantages[part.tokens].to(logprobs.device)
        if (
            teacher is not None
            and isinstance(self.distill, SampledDistill)
            and self.distill.control_variate
        ):
            exact = self._exact_reverse_kl(teacher, part, states)
            at_token = control_variate(at_token, batch.beta * exact)
        old_logprobs = torch.from_numpy(batch.rollouts.logprobs[part.tokens]).to(logprobs.device)
        losses, clip = clipped_surrogate(
            logprobs,
            old_logprobs,
            at_token,
            clip_low=self.loss.clip_low,
            clip_high=self.loss.clip_high,
            dual_clip=self.loss.dual_clip,
        )
        clipped = clip["clip_low_fraction"] + clip["clip_high_fraction"]
        statistics.num_clipped += float(clipped) * len(losses)
        return losses

    def _direct_loss(
        self, teacher: TeacherOutputs, part: MicroBatch, states: PackedStates
    ) -> Float[Tensor, "N"]:
        """Return a divergence of whole distributions, over the teacher's top tokens."""
        assert not isinstance(self.distill, SampledDistill)
        ids, logprobs = _teacher_topk(teacher, part.tokens, states)
        k = self.distill.top_k if isinstance(self.distill, TopKDistill) else ids.shape[1]
        return chunked_divergence_loss(
            states.hidden,
            self.forward.policy.head,
            logprobs[:, :k],
            ids[:, :k],
            form=self.distill.form,
            banned=self.forward.policy.banned,
        )

    @torch.no_grad()
    def _exact_reverse_kl(
        self, teacher: TeacherOutputs, part: MicroBatch, states: PackedStates
    ) -> Float[Tensor, "N"]:
        """Return KL(student || teacher) at every token, over the teacher's top k and a tail."""
        policy = self.forward.policy
        ids, logprobs = _teacher_topk(teacher, part.tokens, states)
        rows = zip(states.hidden.split(1024), logprobs.split(1024), ids.split(1024), strict=True)
        return torch.cat(
            [
                reverse_kl(
                    *topk_buckets(full_logprobs(h, policy.head, banned=policy.banned), lp, i)
                )
                for h, lp, i in rows
            ]
        )

    @torch.no_grad()
    def _compare_with_teacher(
        self,
        teacher: TeacherOutputs,
        part: MicroBatch,
        states: PackedStates,
        statistics: BatchStatistics,
    ) -> None:
        """Record overlap and divergence at the probes of a micro-batch."""
        policy, probes = self.forward.policy, teacher.probes
        every = -(-len(probes) // self.monitor.num_probe_tokens)
        is_compared = np.arange(len(probes)) % every == 0
        is_inside = (probes >= part.tokens.start) & (probes < part.tokens.stop) & is_compared
        if not is_inside.any():
            return
        device = states.hidden.device
        rows = torch.from_numpy(probes[is_inside]).long().to(device) - part.tokens.start
        ids = torch.from_numpy(teacher.topk_ids[is_inside]).to(device)
        teacher_logprobs = torch.from_numpy(teacher.topk_logprobs[is_inside]).to(device)
        student = full_logprobs(states.hidden[rows], policy.head, banned=policy.banned)
        k = min(self.monitor.overlap_k, ids.shape[1])
        statistics.overlap.append(topk_overlap(student.topk(k).indices, ids[:, :k]))
        buckets = topk_buckets(student, teacher_logprobs, ids)
        statistics.symmetric_kl.append(symmetric_kl(*buckets))
        statistics.entropy_gap.append(entropy(buckets[1]) - entropy(buckets[0]))


def _teacher_topk(
    teacher: TeacherOutputs, tokens: slice, states: PackedStates
) -> tuple[Tensor, Tensor]:
    """Return the teacher's top tokens at each of these tokens, and their log-probabilities."""
    assert len(teacher.probes) == len(teacher.logprobs), "a direct loss needs every token probed"
    device = states.hidden.device
    ids = torch.from_numpy(teacher.topk_ids[tokens]).to(device)
    return ids, torch.from_numpy(teacher.topk_logprobs[tokens]).to(device)


def batch_metrics(
    batch: TrainingBatch, statistics: BatchStatistics, advantages: Float[Tensor, "N"] | None
) -> dict[str, float]:
    """Return the metrics of one training batch, as docs/metrics.md lists them."""
    rollouts = batch.rollouts
    sampled = torch.from_numpy(rollouts.logprobs)
    mismatch = (torch.cat(statistics.logprobs).cpu() - sampled).abs().max()
    metrics = {
        "loss": statistics.loss,
        "reward": float(rollouts.rewards.mean()),
        "accuracy": float((rollouts.rewards >= 1.0).mean()),
        "entropy": float(torch.cat(statistics.entropy).mean()),
        "length": float(rollouts.lengths.mean()),
        "truncated": float(rollouts.is_truncated.mean()),
        "train_inference_mismatch": float(mismatch),
    }
    if advantages is not None:
        metrics["advantage_std"] = float(advantages.std(correction=0))
        metrics["clip_ratio"] = statistics.num_clipped / len(advantages)
    if batch.teacher is None:
        metrics["frac_reward_zero_std"] = float((rollouts.rewards.std(axis=1) == 0).mean())
        return metrics
    delta = torch.from_numpy(batch.teacher.logprobs) - sampled
    return metrics | {
        "delta_mean": float(delta.mean()),
        "delta_std": float(delta.std(correction=0)),
        "delta_min": float(delta.min()),
        "delta_max": float(delta.max()),
        "overlap": float(torch.cat(statistics.overlap).mean()),
        "symmetric_kl": float(torch.cat(statistics.symmetric_kl).mean()),
        "entropy_gap": float(torch.cat(statistics.entropy_gap).mean()),
    }

"""One lesson through the model: the loss of each micro-batch, its gradient, and what is measured on
the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from copd.branch.advantages import MicroBatch, completions_of, micro_batches
from copd.branch.precision import Precision, autocast
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
from copd.policy import PackedStates, Policy, Prompt, SharedPrefix
from copd.types import TeacherOutputs, TrainingBatch

Distill = SampledDistill | TopKDistill | FullDistill


@dataclass
class BatchRecord:
    """Per-token values of one lesson, collected over its micro-batches."""

    loss: float = 0.0
    logprobs: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    clipped: float = 0.0
    overlap: list[Tensor] = field(default_factory=list)
    symmetric_kl: list[Tensor] = field(default_factory=list)
    entropy_gap: list[Tensor] = field(default_factory=list)

    @classmethod
    def join(cls, records: Sequence["BatchRecord"]) -> "BatchRecord":
        """One lesson's, from those of its pieces in their order."""
        joined = cls()
        for record in records:
            for name, values in vars(record).items():
                setattr(joined, name, getattr(joined, name) + values)
        return joined


@dataclass(frozen=True)
class Learner:
    """The settings one branch learns with."""

    loss: LossConfig
    distill: Distill
    monitor: MonitorConfig
    micro_batch_tokens: int
    precision: Precision
    """Of passes through the model; weights and losses are float32."""

    def backward(
        self,
        policy: Policy,
        lesson: TrainingBatch,
        advantages: Float[Tensor, "N"] | None,
        share: float,
        *,
        prompts: Sequence[Prompt] | SharedPrefix,
        piece: slice,
    ) -> BatchRecord:
        """Adds the gradient of `share` times the lesson's loss to the policy's parameters.

        Only of what a piece of the problems contributes to both; the prompts are those of the
        piece, as sampling has read them, or else they are read here.
        """
        batch, record = lesson.batch, BatchRecord()
        leaves = prompts.cut() if isinstance(prompts, SharedPrefix) else prompts
        weights = share * token_weights(torch.from_numpy(batch.lengths), self.loss.aggregation)
        sizes, first = batch.prompt_lengths[piece].tolist(), piece.start
        for part in micro_batches(batch, sizes, self.micro_batch_tokens, first=first):
            with autocast(policy, self.precision):
                if isinstance(leaves, SharedPrefix):
                    read = leaves.select(part.problems)
                else:
                    read = policy.read(leaves[part.problems])
                states = policy.score_after(read, completions_of(batch, part))
                losses = self._losses(policy, lesson, advantages, part, states, record)
            loss = (losses * weights[part.tokens].to(losses.device)).sum()
            loss.backward()
            record.loss += float(loss.detach()) / share
            if not math.isfinite(record.loss):
                return record
        if isinstance(prompts, SharedPrefix) and isinstance(leaves, SharedPrefix):
            prompts.backward(leaves)
        return record

    def _losses(
        self,
        policy: Policy,
        lesson: TrainingBatch,
        advantages: Tensor | None,
        part: MicroBatch,
        states: PackedStates,
        record: BatchRecord,
    ) -> Float[Tensor, "N"]:
        """The loss of each token of a part, before weighting; also fills the record."""
        scores = lesson.scores
        logprobs, entropies = token_logprobs(
            states.hidden,
            policy.head,
            states.token_ids,
            banned=policy.banned,
            temperature=lesson.batch.temperature,
        )
        record.logprobs.append(logprobs.detach())
        record.entropy.append(entropies)
        if scores is not None:
            self._compare(policy, scores, part, states, record)
        if advantages is None:
            assert scores is not None and not isinstance(self.distill, SampledDistill)
            return lesson.beta * self._direct(policy, scores, part, states)
        at_token = advantages[part.tokens].to(logprobs.device)
        if (
            scores is not None
            and isinstance(self.distill, SampledDistill)
            and self.distill.control_variate
        ):
            exact = self._exact_reverse_kl(policy, scores, part, states)
            at_token = control_variate(at_token, lesson.beta * exact)
        old = torch.from_numpy(lesson.batch.logprobs[part.tokens]).to(logprobs.device)
        losses, clip = clipped_surrogate(
            logprobs,
            old,
            at_token,
            clip_low=self.loss.clip_low,
            clip_high=self.loss.clip_high,
            dual_clip=self.loss.dual_clip,
        )
        removed = clip["clip_low_fraction"] + clip["clip_high_fraction"]
        record.clipped += float(removed) * len(losses)
        return losses

    def _direct(
        self, policy: Policy, scores: TeacherOutputs, part: MicroBatch, states: PackedStates
    ) -> Float[Tensor, "N"]:
        """A divergence between whole distributions, over the support the teacher told."""
        assert not isinstance(self.distill, SampledDistill)
        k = (
            self.distill.top_k
            if isinstance(self.distill, TopKDistill)
            else scores.topk_ids.shape[1]
        )
        ids, logprobs = _teacher_topk(scores, part.tokens, states)
        return chunked_divergence_loss(
            states.hidden,
            policy.head,
            logprobs[:, :k],
            ids[:, :k],
            form=self.distill.form,
            banned=policy.banned,
        )

    @torch.no_grad()
    def _exact_reverse_kl(
        self, policy: Policy, scores: TeacherOutputs, part: MicroBatch, states: PackedStates
    ) -> Float[Tensor, "N"]:
        """KL(student || teacher) at every token, over the teacher's top k and a tail."""
        ids, logprobs = _teacher_topk(scores, part.tokens, states)
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
    def _compare(
        self,
        policy: Policy,
        scores: TeacherOutputs,
        part: MicroBatch,
        states: PackedStates,
        record: BatchRecord,
    ) -> None:
        """Overlap and divergence at the probed tokens of this part."""
        every = -(-len(scores.probes) // self.monitor.num_probe_tokens)
        compared = np.arange(len(scores.probes)) % every == 0
        inside = (
            (scores.probes >= part.tokens.start) & (scores.probes < part.tokens.stop) & compared
        )
        if not inside.any():
            return
        device = states.hidden.device
        rows = torch.from_numpy(scores.probes[inside]).long().to(device) - part.tokens.start
        ids = torch.from_numpy(scores.topk_ids[inside]).to(device)
        teacher = torch.from_numpy(scores.topk_logprobs[inside]).to(device)
        student = full_logprobs(states.hidden[rows], policy.head, banned=policy.banned)
        k = min(self.monitor.overlap_k, ids.shape[1])
        record.overlap.append(topk_overlap(student.topk(k).indices, ids[:, :k]))
        buckets = topk_buckets(student, teacher, ids)
        record.symmetric_kl.append(symmetric_kl(*buckets))
        record.entropy_gap.append(entropy(buckets[1]) - entropy(buckets[0]))


def _teacher_topk(
    scores: TeacherOutputs, tokens: slice, states: PackedStates
) -> tuple[Tensor, Tensor]:
    """What the teacher told at each of these tokens; needs a probe at every token."""
    assert len(scores.probes) == len(scores.logprobs), (
        "a direct loss needs the teacher at every token"
    )
    device = states.hidden.device
    ids = torch.from_numpy(scores.topk_ids[tokens]).to(device)
    return ids, torch.from_numpy(scores.topk_logprobs[tokens]).to(device)


def batch_metrics(
    lesson: TrainingBatch, record: BatchRecord, advantages: Float[Tensor, "N"] | None
) -> dict[str, float]:
    """What one lesson shows: reward, spread, entropy; for OPD also how far apart the pair is."""
    batch = lesson.batch
    sampled = torch.from_numpy(batch.logprobs)
    gap = (torch.cat(record.logprobs).cpu() - sampled).abs().max()
    metrics = {
        "loss": record.loss,
        "reward": float(batch.rewards.mean()),
        "accuracy": float((batch.rewards >= 1.0).mean()),
        "entropy": float(torch.cat(record.entropy).mean()),
        "length": float(batch.lengths.mean()),
        "truncated": float(batch.is_truncated.mean()),
        "train_inference_mismatch": float(gap),
    }
    if advantages is not None:
        metrics["advantage_std"] = float(advantages.std(correction=0))
        metrics["clip_ratio"] = record.clipped / len(advantages)
    if lesson.scores is None:
        metrics["frac_reward_zero_std"] = float((batch.rewards.std(axis=1) == 0).mean())
        return metrics
    delta = torch.from_numpy(lesson.scores.logprobs) - sampled
    return metrics | {
        "delta_mean": float(delta.mean()),
        "delta_std": float(delta.std(correction=0)),
        "delta_min": float(delta.min()),
        "delta_max": float(delta.max()),
        "overlap": float(torch.cat(record.overlap).mean()),
        "symmetric_kl": float(torch.cat(record.symmetric_kl).mean()),
        "entropy_gap": float(torch.cat(record.entropy_gap).mean()),
    }

"""A check of a sampler: is it close to its policy, and does it follow a change of weights?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from copd.branch.micro_batches import Forward, MicroBatch
from copd.functional import token_logprobs
from copd.policy import PackedStates, Policy, Prompt, Sampler, SamplingRequest
from copd.types import Completions, ProblemId, RolloutRequest, ScoreRequest

_GROUP = 2
_MAX_TOKENS = 64
_NOISE = (0.3, 0.03)
"""Relative and absolute standard deviation of the noise on a weight. Log-probabilities of the
embedded base move by 0.02 to 1.6 nats; in bfloat16 two passes differ by 0.01 or less."""


@dataclass(frozen=True)
class LogprobMismatch:
    """|Sampler's - policy's log-probability| over the tokens of some completions, in nats."""

    mean: float
    problem: ProblemId
    completion: int
    token: int
    """Position of the largest mismatch: completion and token, both from 0."""
    sampler: float
    policy: float
    """The two log-probabilities there."""


@dataclass(frozen=True)
class SamplerCheck:
    """What a sampler does on a few problems of a domain."""

    initial: LogprobMismatch
    """With the weights as they are."""
    changed: LogprobMismatch
    """After the weights were changed and the sampler refreshed."""
    stale: float
    """Mean mismatch of the second completions to the weights before the change, in nats. It is far
    larger than `changed.mean` in a sampler that follows."""


def check_sampler(
    forward: Forward,
    sampler: Sampler,
    requests: Sequence[RolloutRequest],
    prompts: Sequence[Sequence[Prompt]],
) -> list[SamplerCheck]:
    """Sample, change some weights, sample again, and restore the weights bit for bit.

    Args:
        forward: The policy that the sampler samples for.
        sampler: The sampler to check.
        requests: Problems, temperature and seed; one request per domain.
        prompts: Prompts of each request's problems.

    Returns:
        One check per request.
    """

    def sample() -> list[_Sampled]:
        sampling = [
            SamplingRequest(own, _GROUP, request.temperature, request.seed)
            for request, own in zip(requests, prompts, strict=True)
        ]
        sampled = sampler.sample(sampling, _MAX_TOKENS).completions
        return [_Sampled.of(*pair) for pair in zip(requests, sampled, strict=True)]

    def mismatches(samples: Sequence[_Sampled]) -> list[LogprobMismatch]:
        return [
            one.mismatch(_policy_logprobs(forward, own, one))
            for own, one in zip(prompts, samples, strict=True)
        ]

    initial = mismatches(sample())
    with _noisy_weights(forward.policy):
        sampler.refresh()
        samples = sample()
        changed = mismatches(samples)
    sampler.refresh()
    stale = [mismatch.mean for mismatch in mismatches(samples)]
    return [SamplerCheck(*each) for each in zip(initial, changed, stale, strict=True)]


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Completions, and the sampler's log-probabilities of their tokens."""

    completions: ScoreRequest
    temperature: float
    logprobs: NDArray[np.float32]

    @classmethod
    def of(cls, request: RolloutRequest, completions: Completions) -> _Sampled:
        packed = ScoreRequest(
            problems=request.problems,
            token_ids=completions.token_ids,
            lengths=completions.lengths,
            probes=np.empty(0, dtype=np.int32),
            top_k=1,
        )
        return cls(packed, request.temperature, completions.logprobs)

    def mismatch(self, policy_logprobs: NDArray[np.float32]) -> LogprobMismatch:
        difference = np.abs(self.logprobs - policy_logprobs)
        worst = int(difference.argmax())
        ends = np.cumsum(self.completions.lengths)
        row = int(np.searchsorted(ends, worst, side="right"))
        return LogprobMismatch(
            mean=float(difference.mean()),
            problem=self.completions.problems[row // _GROUP],
            completion=row % _GROUP,
            token=worst - int(ends[row] - self.completions.lengths[row]),
            sampler=float(self.logprobs[worst]),
            policy=float(policy_logprobs[worst]),
        )


@torch.no_grad()
def _policy_logprobs(
    forward: Forward, prompts: Sequence[Prompt], sampled: _Sampled
) -> NDArray[np.float32]:
    """Compute log-probabilities as an update does: same pass, same precision."""
    policy = forward.policy

    def compute(part: MicroBatch, states: PackedStates) -> NDArray[np.float32]:
        logprobs, _ = token_logprobs(
            states.hidden,
            policy.head,
            states.token_ids,
            banned=policy.banned,
            temperature=sampled.temperature,
        )
        return logprobs.numpy(force=True)

    lengths = [len(prompt.input_ids) for prompt in prompts]
    passes = forward.run(sampled.completions, prompts, lengths, compute)
    return np.concatenate([logprobs for _, logprobs in passes])


@contextmanager
def _noisy_weights(policy: Policy) -> Iterator[None]:
    """Add noise to the trainable vectors, such as gains and biases, or to an adapter's matrices."""
    trained = [p for p in policy.parameters().values() if p.requires_grad]
    chosen = [p for p in trained if p.ndim == 1] or trained
    originals = [p.detach().clone() for p in chosen]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in chosen:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_((_NOISE[0] * parameter.abs() + _NOISE[1]) * noise)
        yield
    finally:
        with torch.no_grad():
            for parameter, original in zip(chosen, originals, strict=True):
                parameter.copy_(original)

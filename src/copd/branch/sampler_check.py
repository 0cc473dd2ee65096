"""How far a sampler is from the policy it samples for, and whether it follows a change of weights.

Knows no limits: what is too far others decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from copd.branch.advantages import completions_of, micro_batches
from copd.branch.learner import Learner
from copd.branch.precision import autocast
from copd.functional import token_logprobs
from copd.policy import Policy, Prompt, Sampler, SamplingRequest
from copd.types import Completion, ProblemId, RolloutRequest, ScoreRequest

_GROUP = 2
_MAX_TOKENS = 64
_NUDGE = (0.3, 0.03)
"""Standard deviation of what is added to a weight, relative to it and absolute: log-probabilities
of the embedded base move by 0.02 to 1.6 nats; in bfloat16 two passes differ by 0.01 or less."""


@dataclass(frozen=True)
class LogprobMismatch:
    """|Sampler's - policy's log-probability| over the tokens of some completions."""

    mean: float
    problem: ProblemId
    completion: int
    token: int
    """Where the largest is: both count from 0."""
    sampler: float
    policy: float
    """What they say there."""


@dataclass(frozen=True)
class SamplerCheck:
    """What a sampler does on a few problems of a domain."""

    gap: LogprobMismatch
    """With the weights as they are."""
    moved: LogprobMismatch
    """With weights that were changed since, which the sampler was told of."""
    stale: float
    """The same completions' mean gap to the weights from before: far larger in a sampler that
    follows."""


def check_sampler(
    policy: Policy,
    learning: Learner,
    sampler: Sampler,
    requests: Sequence[RolloutRequest],
    prompts: Sequence[Sequence[Prompt]],
) -> list[SamplerCheck]:
    """Samples, changes some weights, samples again, and gives the weights back to the bit."""

    def sample() -> list[_Sampled]:
        wanted = [
            SamplingRequest(own, _GROUP, request.temperature, request.seed)
            for request, own in zip(requests, prompts, strict=True)
        ]
        groups = sampler.sample(wanted, _MAX_TOKENS).groups
        batches = zip(requests, groups, strict=True)
        return [
            _Sampled.of(request, [c for group in own for c in group]) for request, own in batches
        ]

    def score(said: Sequence[_Sampled]) -> list[NDArray[np.float32]]:
        return [
            _own_logprobs(policy, learning, own, one)
            for own, one in zip(prompts, said, strict=True)
        ]

    first = sample()
    gaps = [one.gap(own) for one, own in zip(first, score(first), strict=True)]
    with _nudged(policy):
        sampler.refresh()
        second = sample()
        moved = [one.gap(own) for one, own in zip(second, score(second), strict=True)]
    sampler.refresh()
    stale = [one.gap(own).mean for one, own in zip(second, score(second), strict=True)]
    return [SamplerCheck(*each) for each in zip(gaps, moved, stale, strict=True)]


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Completions, and what the sampler says of their tokens."""

    question: ScoreRequest
    temperature: float
    logprobs: NDArray[np.float32]

    @classmethod
    def of(cls, request: RolloutRequest, completions: Sequence[Completion]) -> _Sampled:
        question = ScoreRequest(
            problems=request.problems,
            token_ids=np.concatenate([c.token_ids for c in completions]),
            lengths=np.array([len(c.token_ids) for c in completions], dtype=np.int32),
            probes=np.empty(0, dtype=np.int32),
            top_k=1,
        )
        logprobs = np.concatenate([c.logprobs for c in completions])
        return cls(question, request.temperature, logprobs)

    def gap(self, own: NDArray[np.float32]) -> LogprobMismatch:
        """To these log-probabilities of the same tokens."""
        apart = np.abs(self.logprobs - own)
        worst = int(apart.argmax())
        ends = np.cumsum(self.question.lengths)
        row = int(np.searchsorted(ends, worst, side="right"))
        return LogprobMismatch(
            mean=float(apart.mean()),
            problem=self.question.problems[row // _GROUP],
            completion=row % _GROUP,
            token=worst - int(ends[row] - self.question.lengths[row]),
            sampler=float(self.logprobs[worst]),
            policy=float(own[worst]),
        )


@torch.no_grad()
def _own_logprobs(
    policy: Policy, learning: Learner, prompts: Sequence[Prompt], said: _Sampled
) -> NDArray[np.float32]:
    """As an update computes them: the same pass, the same precision."""
    found = []
    sizes = [len(prompt.input_ids) for prompt in prompts]
    for part in micro_batches(said.question, sizes, learning.micro_batch_tokens):
        with autocast(policy, learning.precision):
            states = policy.score(prompts[part.problems], completions_of(said.question, part))
            logprobs, _ = token_logprobs(
                states.hidden,
                policy.head,
                states.token_ids,
                banned=policy.banned,
                temperature=said.temperature,
            )
        found.append(logprobs.numpy(force=True))
    return np.concatenate(found)


@contextmanager
def _nudged(policy: Policy) -> Iterator[None]:
    """Vectors among the weights moved at random: gains and biases, which all layers have, of text
    and tower alike; of an adapter, which has none, its matrices."""
    trained = [p for p in policy.parameters().values() if p.requires_grad]
    chosen = [p for p in trained if p.ndim == 1] or trained
    kept = [p.detach().clone() for p in chosen]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in chosen:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_((_NUDGE[0] * parameter.abs() + _NUDGE[1]) * noise)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(chosen, kept, strict=True):
                parameter.copy_(value)

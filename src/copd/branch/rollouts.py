"""Sampled completions as batches: verified, packed, and joined over ranks."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from copd.branch.prompts import PromptCache
from copd.policy import Prompt
from copd.types import (
    Completions,
    EvaluationRollouts,
    ProbeRollouts,
    ProblemId,
    RolloutBatch,
    RolloutRequest,
)


def pack_batch(
    request: RolloutRequest,
    prompts: Sequence[Prompt],
    completions: Completions,
    cache: PromptCache,
) -> RolloutBatch:
    """Verify the completions of a request."""
    return RolloutBatch(
        action=request.action,
        problems=request.problems,
        prompt_lengths=np.array([len(prompt.input_ids) for prompt in prompts], dtype=np.int32),
        token_ids=completions.token_ids,
        lengths=completions.lengths,
        logprobs=completions.logprobs,
        rewards=cache.verify_groups(request.problems, completions.texts),
        is_truncated=completions.is_truncated,
        texts=completions.texts,
        temperature=request.temperature,
    )


def pack_evaluation(
    problems: Sequence[ProblemId], completions: Completions, cache: PromptCache
) -> EvaluationRollouts:
    """Verify the completions of an evaluation."""
    return EvaluationRollouts(
        suites=tuple(cache.problem(problem).suite for problem in problems),
        rewards=cache.verify_groups(problems, completions.texts),
        lengths=completions.lengths.reshape(len(problems), -1),
    )


def verify_probes(probes: ProbeRollouts, cache: PromptCache) -> EvaluationRollouts:
    """Verify probe rollouts like an evaluation."""
    num_samples = len(probes.lengths) // len(probes.problems)
    problems = [problem for problem in probes.problems for _ in range(num_samples)]
    rewards = [cache.verify(p, text) for p, text in zip(problems, probes.texts, strict=True)]
    return EvaluationRollouts(
        suites=tuple(cache.problem(problem).suite for problem in probes.problems),
        rewards=np.array(rewards, dtype=np.float32).reshape(-1, num_samples),
        lengths=probes.lengths.reshape(-1, num_samples),
    )


def join_batches(shards: Sequence[RolloutBatch | None]) -> RolloutBatch:
    """Join the shards of a batch in their order."""
    present = [shard for shard in shards if shard]
    if len(present) == 1:
        return present[0]

    def joined(name: str) -> Any:
        return np.concatenate([getattr(shard, name) for shard in present])

    names = ("prompt_lengths", "token_ids", "lengths", "logprobs", "rewards", "is_truncated")
    return replace(
        present[0],
        problems=tuple(problem for shard in present for problem in shard.problems),
        texts=tuple(text for shard in present for text in shard.texts),
        **{name: joined(name) for name in names},
    )


def join_evaluations(shards: Sequence[EvaluationRollouts]) -> EvaluationRollouts:
    """Join the shards of an evaluation in their order."""
    return EvaluationRollouts(
        suites=tuple(suite for shard in shards for suite in shard.suites),
        rewards=np.concatenate([shard.rewards for shard in shards]),
        lengths=np.concatenate([shard.lengths for shard in shards]),
    )

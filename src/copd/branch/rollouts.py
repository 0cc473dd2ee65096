"""Sampled completions as a batch: verified and packed. Runs no model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from copd.branch.prompts import PromptCache
from copd.policy import Prompt
from copd.types import (
    Completion,
    EvaluationRollouts,
    ProbeRollouts,
    ProblemId,
    RolloutBatch,
    RolloutRequest,
)


def pack_batch(
    request: RolloutRequest,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    book: PromptCache,
) -> RolloutBatch:
    """The answer to a request: one flat token axis, and the verifier's rewards."""
    completions = [completion for group in groups for completion in group]
    return RolloutBatch(
        action=request.action,
        problems=request.problems,
        prompt_lengths=np.array([len(prompt.input_ids) for prompt in prompts], dtype=np.int32),
        token_ids=np.concatenate([c.token_ids for c in completions]),
        lengths=np.array([len(c.token_ids) for c in completions], dtype=np.int32),
        logprobs=np.concatenate([c.logprobs for c in completions]),
        rewards=book.verify_groups(request.problems, groups),
        is_truncated=np.array([c.is_truncated for c in completions]),
        texts=tuple(c.text for c in completions),
        temperature=request.temperature,
    )


def pack_evaluation(
    names: Sequence[ProblemId], groups: Sequence[Sequence[Completion]], book: PromptCache
) -> EvaluationRollouts:
    """What an evaluation asked for, from the completions of each problem."""
    return EvaluationRollouts(
        suites=tuple(book.problem(name).suite for name in names),
        rewards=book.verify_groups(names, groups),
        lengths=np.array([[len(c.token_ids) for c in group] for group in groups], dtype=np.int32),
    )


def verify_probes(portrait: ProbeRollouts, book: PromptCache) -> EvaluationRollouts:
    """What the completions of a portrait earn, as an evaluation would have it."""
    num_samples = len(portrait.lengths) // len(portrait.problems)
    names = [name for name in portrait.problems for _ in range(num_samples)]
    rewards = [book.verify(name, text) for name, text in zip(names, portrait.texts, strict=True)]
    return EvaluationRollouts(
        suites=tuple(book.problem(name).suite for name in portrait.problems),
        rewards=np.array(rewards, dtype=np.float32).reshape(-1, num_samples),
        lengths=portrait.lengths.reshape(-1, num_samples),
    )


def join_batches(pieces: Sequence[RolloutBatch | None]) -> RolloutBatch:
    """One batch from those of its pieces in their order."""
    parts = [piece for piece in pieces if piece]
    if len(parts) == 1:
        return parts[0]

    def end_to_end(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    names = ("prompt_lengths", "token_ids", "lengths", "logprobs", "rewards", "is_truncated")
    return replace(
        parts[0],
        problems=tuple(problem for part in parts for problem in part.problems),
        texts=tuple(text for part in parts for text in part.texts),
        **{name: end_to_end(name) for name in names},
    )


def join_evaluations(parts: Sequence[EvaluationRollouts]) -> EvaluationRollouts:
    """One evaluation from those of its pieces in their order."""
    return EvaluationRollouts(
        suites=tuple(suite for part in parts for suite in part.suites),
        rewards=np.concatenate([part.rewards for part in parts]),
        lengths=np.concatenate([part.lengths for part in parts]),
    )

"""Sampled completions as a batch: verified and packed. Runs no model."""

from collections.abc import Sequence

import numpy as np

from copd.branch.prompts import PromptBook
from copd.policy import Prompt
from copd.types import Answers, Batch, Completion, Portrait, SampleRequest


def pack_batch(
    request: SampleRequest,
    prompts: Sequence[Prompt],
    groups: Sequence[Sequence[Completion]],
    book: PromptBook,
) -> Batch:
    """The answer to a request: one flat token axis, and the verifier's rewards."""
    completions = [completion for group in groups for completion in group]
    return Batch(
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


def verified(portrait: Portrait, book: PromptBook) -> Answers:
    """What the completions of a portrait earn, as an evaluation would have it."""
    num_samples = len(portrait.lengths) // len(portrait.problems)
    names = [name for name in portrait.problems for _ in range(num_samples)]
    rewards = [book.verify(name, text) for name, text in zip(names, portrait.texts, strict=True)]
    return Answers(
        suites=tuple(book.problem(name).suite for name in portrait.problems),
        rewards=np.array(rewards, dtype=np.float32).reshape(-1, num_samples),
        lengths=portrait.lengths.reshape(-1, num_samples),
    )

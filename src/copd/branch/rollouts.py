"""Sampled completions as a batch: verified and packed. Runs no model."""

from collections.abc import Sequence

import numpy as np

from copd.branch.prompts import PromptBook
from copd.policy import Prompt
from copd.types import Batch, Completion, SampleRequest


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

"""Completions of planned lengths, in our sampler and in transformers' `generate`.

Both sides draw tokens as usual, but the end token is impossible until a row has its planned length,
and certain then. Otherwise the random model would decide how much work a step is.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from copd.functional import full_logprobs
from copd.policy.sampling import sampler


def end_as_planned(
    scores: Float[Tensor, "R V"], lengths: NDArray[np.int64], step: int, end: int, longest: int
) -> Float[Tensor, "R V"]:
    """Return scores of token `step` under which each row ends at its planned length.

    A row planned as long as the limit is truncated and needs no end token.
    """
    is_last = torch.from_numpy((lengths == step + 1) & (lengths < longest)).to(scores.device)
    forced = scores.clone()
    forced[:, end] = -torch.inf
    forced[is_last] = -torch.inf
    forced[is_last, end] = 0.0
    return forced


def banned_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Bool[Tensor, "V"]:
    """Mark the special tokens except the end, and the rows of the head without a token.

    copd never samples them, and a placeholder would need pixels that do not exist.
    """
    banned = torch.arange(vocab_size) >= len(tokenizer)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        banned[token_id] |= token.special and token_id != tokenizer.eos_token_id
    return banned


class PlannedSampler:
    """Replaces `full_logprobs` in the sampler, which calls it once per decoding step.

    Rows keep their order and leave only when finished, so the plan says which rows remain. A batch
    ends with its longest row; the next lengths of the plan are those of the next batch.
    """

    def __init__(self, end: int, longest: int) -> None:
        self.end, self.longest = end, longest
        self.plan(np.zeros(0, dtype=np.int64))

    def install(self) -> None:
        """Replace the function in this process."""
        sampler.full_logprobs = self

    def plan(self, lengths: NDArray[np.int64]) -> None:
        """Set the lengths of all rows that will be sampled, batch after batch."""
        self.waiting = lengths
        self.present = lengths[:0]
        self.step = 0

    def __call__(self, hidden: Tensor, head: Tensor, **options: Any) -> Tensor:
        if self.step >= self.present.max(initial=0):
            self.present, self.waiting = np.split(self.waiting, [len(hidden)])
            self.step = 0
        elif len(hidden) < len(self.present):
            self.present = self.present[self.present > self.step]
        assert len(self.present) == len(hidden), "the sampler's rows are not those of the plan"
        scores = full_logprobs(hidden, head, **options)
        forced = end_as_planned(scores, self.present, self.step, self.end, self.longest)
        self.step += 1
        return forced


class PlannedGenerate(LogitsProcessor):
    """The same for `generate`, whose rows all stay to the end; also forbids banned tokens."""

    def __init__(
        self, lengths: NDArray[np.int64], end: int, longest: int, banned: Bool[Tensor, "V"]
    ) -> None:
        self.lengths, self.end, self.longest, self.banned = lengths, end, longest, banned
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = end_as_planned(scores, self.lengths, self.step, self.end, self.longest)
        self.step += 1
        return forced.masked_fill_(self.banned, -torch.inf)

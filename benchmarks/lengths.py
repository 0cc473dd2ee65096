"""Completions of a planned length, in our sampler and in transformers' `generate`.

Both sides draw tokens as they always do; only the end token is forbidden until a row's plan is
fulfilled, and certain then. Without it the random model would decide how much work a step is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from copd.functional import full_logprobs
from copd.policy.sampling import sampler


def end_as_planned(
    scores: Float[Tensor, "R V"], lengths: NDArray[np.int64], step: int, end: int, longest: int
) -> Float[Tensor, "R V"]:
    """Scores of token `step` of each row: the end token is impossible, or the only one at its turn.

    A row planned as long as the limit is cut off by it and needs no end.
    """
    is_last = torch.from_numpy((lengths == step + 1) & (lengths < longest))
    forced = scores.clone()
    forced[:, end] = -torch.inf
    forced[is_last] = -torch.inf
    forced[is_last, end] = 0.0
    return forced


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special tokens but the end: copd never samples them, and a placeholder would ask for pixels
    that do not exist."""
    special = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return [token for token in special if token != tokenizer.eos_token_id]


class PlannedSampler:
    """Stands for `full_logprobs` in the sampler, which calls it once per decoding step.

    Rows keep their order and leave only when finished, so who is still there follows from the plan.
    A batch is over when its longest row is; the next rows in the plan are the next batch's.
    """

    def __init__(self, end: int, longest: int) -> None:
        self.end, self.longest = end, longest
        self.plan(np.zeros(0, dtype=np.int64))

    def install(self) -> None:
        """From here on, in this process."""
        sampler.full_logprobs = self

    def plan(self, lengths: NDArray[np.int64]) -> None:
        """Lengths of all rows that will be sampled, batch after batch."""
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
    """The same for `generate`, whose rows stay to the end; also forbids control tokens."""

    def __init__(
        self, lengths: NDArray[np.int64], end: int, longest: int, control: list[int]
    ) -> None:
        self.lengths, self.end, self.longest, self.control = lengths, end, longest, control
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = end_as_planned(scores, self.lengths, self.step, self.end, self.longest)
        forced[:, self.control] = -torch.inf
        self.step += 1
        return forced

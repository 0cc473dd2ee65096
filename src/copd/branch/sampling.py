"""Batches of prompts to completions: all in one decode loop where they fit, each prompt read once.

Knows no rewards and no losses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from copd.branch.learner import Learner
from copd.branch.precision import Precision, autocast
from copd.policy import Draw, Policy, SamplingRequest, SamplingResult, SharedPrefix
from copd.types import Completion


@dataclass(frozen=True, eq=False)
class InProcessSampler:
    """The policy samples by itself, from the weights it has: there is nothing to hand over."""

    policy: Policy
    learning: Learner
    max_rows: int

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        """As `sample_batches` does."""
        return sample_batches(
            self.policy,
            batches,
            max_completion_tokens=max_completion_tokens,
            max_prompt_tokens=self.learning.micro_batch_tokens,
            max_rows=self.max_rows,
            precision=self.learning.precision,
            keep_graph=keep_graph,
        )

    def refresh(self) -> None:
        """Nothing."""


def sample_batches(
    policy: Policy,
    batches: Sequence[SamplingRequest],
    *,
    max_completion_tokens: int,
    max_prompt_tokens: int,
    max_rows: int,
    precision: Precision,
    keep_graph: bool = False,
) -> SamplingResult:
    """Completions for all batches, in as few loops as `max_prompt_tokens` and `max_rows` allow.

    With `keep_graph` the prefixes of a single loop can carry a gradient: a first update on these
    completions needs no second pass over the prompts.
    """
    groups: list[list[list[Completion]]] = [[] for _ in batches]
    loops = list(plan_decode_loops(batches, max_rows=max_rows, max_tokens=max_prompt_tokens))
    keep_graph = keep_graph and len(loops) == 1
    prefixes: list[SharedPrefix] = []
    for loop in loops:
        with torch.set_grad_enabled(keep_graph), autocast(policy, precision):
            prefixes = [policy.read(batches[index].prompts[part]) for index, part in loop]
        draws = [
            _draw(batches[index], policy, prefix, part)
            for (index, part), prefix in zip(loop, prefixes, strict=True)
        ]
        with autocast(policy, precision):
            sampled = policy.sample_together(draws, max_tokens=max_completion_tokens)
        for (index, _), found in zip(loop, sampled, strict=True):
            groups[index] += found
    return SamplingResult(groups, prefixes if len(loops) == 1 else None)


def _draw(wanted: SamplingRequest, policy: Policy, prefix: SharedPrefix, part: slice) -> Draw:
    """What is asked of the policy for some of the prompts."""
    return Draw(
        prefix,
        wanted.group_size,
        wanted.temperature,
        torch.Generator(policy.device).manual_seed(wanted.seed),
        first_prompt=wanted.first_prompt + part.start,
        num_prompts=wanted.num_prompts or len(wanted.prompts),
    )


def plan_decode_loops(
    batches: Sequence[SamplingRequest], *, max_rows: int, max_tokens: int
) -> Iterator[list[tuple[int, slice]]]:
    """Runs of prompts, as (batch, prompts), that share a loop: one prompt at least."""
    loop: list[tuple[int, slice]] = []
    rows = tokens = 0
    for index, batch in enumerate(batches):
        first = 0
        for place, prompt in enumerate(batch.prompts):
            size = len(prompt.input_ids)
            if rows and (rows + batch.group_size > max_rows or tokens + size > max_tokens):
                yield loop if place == first else [*loop, (index, slice(first, place))]
                loop, rows, tokens, first = [], 0, 0, place
            rows, tokens = rows + batch.group_size, tokens + size
        if len(batch.prompts) > first:
            loop.append((index, slice(first, len(batch.prompts))))
    if loop:
        yield loop

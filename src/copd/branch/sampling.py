"""The built-in sampler: completions for several batches in one decode loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from copd.branch.micro_batches import Forward
from copd.policy import Draw, Policy, SamplingRequest, SamplingResult, SharedPrefix
from copd.types import Completions


@dataclass(frozen=True, eq=False)
class InProcessSampler:
    """Samples from the policy itself, with the weights it has."""

    forward: Forward
    max_rows: int
    """Completions decoded side by side, at most."""

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        """Sample completions for all batches, in as few decode loops as the limits allow.

        Args:
            batches: The requests. One loop holds at most `max_rows` completions and
                `micro_batch_tokens` prompt tokens.
            max_completion_tokens: Limit on the tokens of a completion.
            keep_graph: Read prompts with gradients if one loop holds them all, so that the first
                update on these completions needs no second pass over the prompts.

        Returns:
            The completions, and the prefixes if one loop held them all.
        """
        parts: list[list[Completions]] = [[] for _ in batches]
        policy, limit = self.forward.policy, self.forward.micro_batch_tokens
        loops = list(plan_decode_loops(batches, max_rows=self.max_rows, max_tokens=limit))
        keep_graph = keep_graph and len(loops) == 1
        prefixes: list[SharedPrefix] = []
        for loop in loops:
            with torch.set_grad_enabled(keep_graph), self.forward.autocast():
                prefixes = [policy.read(batches[index].prompts[part]) for index, part in loop]
            draws = [
                _draw(batches[index], policy, prefix, part)
                for (index, part), prefix in zip(loop, prefixes, strict=True)
            ]
            with self.forward.autocast():
                sampled = policy.sample_together(draws, max_tokens=max_completion_tokens)
            for (index, _), found in zip(loop, sampled, strict=True):
                parts[index].append(found)
        completions = [Completions.join(own) for own in parts]
        return SamplingResult(completions, prefixes if len(loops) == 1 else None)

    def refresh(self) -> None:
        """Do nothing: the weights are the policy's own."""


def _draw(request: SamplingRequest, policy: Policy, prefix: SharedPrefix, part: slice) -> Draw:
    return Draw(
        prefix,
        request.group_size,
        request.temperature,
        torch.Generator(policy.device).manual_seed(request.seed),
        first_prompt=request.first_prompt + part.start,
        num_prompts=request.num_prompts or len(request.prompts),
    )


def plan_decode_loops(
    batches: Sequence[SamplingRequest], *, max_rows: int, max_tokens: int
) -> Iterator[list[tuple[int, slice]]]:
    """Distribute prompts over decode loops.

    Args:
        batches: The requests whose prompts are sampled.
        max_rows: Completions in a loop, at most, unless a single prompt has more.
        max_tokens: Prompt tokens in a loop, at most, unless a single prompt has more.

    Yields:
        For each loop, pairs of a batch's index and a slice of its prompts.
    """
    loop: list[tuple[int, slice]] = []
    rows = tokens = 0
    for index, batch in enumerate(batches):
        first = 0
        for position, prompt in enumerate(batch.prompts):
            size = len(prompt.input_ids)
            if rows and (rows + batch.group_size > max_rows or tokens + size > max_tokens):
                yield loop if position == first else [*loop, (index, slice(first, position))]
                loop, rows, tokens, first = [], 0, 0, position
            rows, tokens = rows + batch.group_size, tokens + size
        if len(batch.prompts) > first:
            loop.append((index, slice(first, len(batch.prompts))))
    if loop:
        yield loop

"""What is asked of whoever samples for a policy, and what comes back. Knows no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from copd.policy.readers.packed import SharedPrefix
from copd.policy.rendering.render import Prompt
from copd.types import Completion


@dataclass(frozen=True, eq=False)
class SamplingRequest:
    """G completions for each prompt, all randomness from the seed."""

    prompts: Sequence[Prompt]
    group_size: int
    temperature: float
    """0 takes the most probable token, its log-probability at temperature 1."""
    seed: int
    first_prompt: int = 0
    num_prompts: int | None = None
    """Where the prompts stand in a larger batch, and how many that has; as in `Draw`."""


@dataclass(frozen=True, eq=False)
class SamplingResult:
    """The groups of every batch; where all prompts were read in one pass, also what was read."""

    groups: list[list[list[Completion]]]
    prefixes: list[SharedPrefix] | None


class Sampler(Protocol):
    """Writes a policy's completions: groups in the order of the prompts, no banned token, the end
    token included, log-probabilities over the tokens that are not banned, at the temperature."""

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        """Completions for all batches; with `keep_graph` prefixes that can carry a gradient, if
        it reads prompts itself and all at once."""
        ...

    def refresh(self) -> None:
        """The policy's weights have changed: nothing sampled from now on comes from older ones."""
        ...

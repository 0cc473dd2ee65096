"""The protocol between a branch and whatever samples its policy's completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from copd.policy.readers.prefix import SharedPrefix
from copd.policy.rendering.render import Prompt
from copd.types import Completions


@dataclass(frozen=True, eq=False)
class SamplingRequest:
    """A batch of prompts with the settings of their completions."""

    prompts: Sequence[Prompt]
    group_size: int
    """Completions per prompt."""
    temperature: float
    """0 takes the most probable token and reports its log-probability at temperature 1."""
    seed: int
    """The only source of randomness."""
    first_prompt: int = 0
    """The place of the first prompt in the larger batch that this one is a slice of."""
    num_prompts: int | None = None
    """The number of prompts of that batch; None if this one is not a slice."""


@dataclass(frozen=True, eq=False)
class SamplingResult:
    """The completions of several requests."""

    completions: list[Completions]
    """One value per request."""
    prefixes: list[SharedPrefix] | None
    """The prompts of each request as read, if all were read in one pass; else None."""


class Sampler(Protocol):
    """Samples completions of a policy.

    Completions contain their end token and no banned token. Their log-probabilities are at the
    temperature of the request, over the tokens that are not banned.
    """

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        """Sample the completions of all requests.

        Args:
            batches: The requests.
            max_completion_tokens: The limit of each completion, in tokens.
            keep_graph: Return prefixes that carry a gradient, if the sampler reads all prompts
                itself and in one pass.

        Returns:
            The completions in the order of requests and prompts.
        """
        ...

    def refresh(self) -> None:
        """Use the policy's present weights from now on, after they have changed."""
        ...

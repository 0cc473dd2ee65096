"""The prompt cache: problems rebuilt from their names, and prompts as the model reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from copd.domains.base import Domain
from copd.policy import Prompt
from copd.types import Message, Problem, ProblemId

_RENDERED_AT_ONCE = 16
"""Problems whose decoded pixels are in memory at a time."""

_NUM_PROBLEMS = 2**16
"""Problems kept for their verifiers; each is a few hundred bytes of text."""


class PromptCache:
    """A least-recently-used cache of prompts, shared by all branches of one base model.

    A picture is thus prepared once for all branches, and a frozen vision tower reads it once.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        render: Callable[[Sequence[Sequence[Message]]], list[Prompt]],
        *,
        size: int = 2048,
        max_bytes: int = 2**28,
    ) -> None:
        self.domains = domains
        self._render = render
        self._size = size
        self._max_bytes = max_bytes
        self._entries: OrderedDict[ProblemId, Prompt] = OrderedDict()
        self._problems: OrderedDict[ProblemId, Problem] = OrderedDict()

    @cached_property
    def held_out(self) -> PromptCache:
        """A cache for measurements, whose entries displace none that training reads."""
        return PromptCache(self.domains, self._render, size=self._size, max_bytes=self._max_bytes)

    def problem(self, name: ProblemId) -> Problem:
        """Return a problem without its messages, which hold decoded pixels.

        Problems stay longer than prompts, so that no clip is decoded only to verify an answer.
        """
        problem = self._problems.get(name)
        return self._build(name)[0] if problem is None else problem

    def prompts(self, names: Sequence[ProblemId]) -> list[Prompt]:
        """Return the prompts of some problems, rendering those that are not cached."""
        missing = [name for name in dict.fromkeys(names) if name not in self._entries]
        for first in range(0, len(missing), _RENDERED_AT_ONCE):
            chunk = missing[first : first + _RENDERED_AT_ONCE]
            self._entries.update(zip(chunk, self._rendered(chunk), strict=True))
        for name in names:
            self._entries.move_to_end(name)
        prompts = [self._entries[name] for name in names]
        self._evict()
        return prompts

    def verify(self, name: ProblemId, text: str) -> float:
        """Return the reward of a completion.

        A verifier that raises is a bug in its domain; the error then names the problem.
        """
        try:
            return self.domains[name.domain].verify(self.problem(name), text)
        except Exception as error:
            error.add_note(_location("raised by the verifier of", name))
            raise

    def verify_groups(
        self, names: Sequence[ProblemId], texts: Sequence[str]
    ) -> NDArray[np.float32]:
        """Return the rewards of equally many completions of each problem, shape `P G`."""
        group_size = len(texts) // len(names)
        repeated = [name for name in names for _ in range(group_size)]
        pairs = list(zip(repeated, texts, strict=True))
        rewards = np.zeros(len(pairs), dtype=np.float32)
        for domain in dict.fromkeys(name.domain for name in names):
            indices = [i for i, (name, _) in enumerate(pairs) if name.domain == domain]
            problems = [self.problem(pairs[i][0]) for i in indices]
            own = [pairs[i][1] for i in indices]
            try:
                rewards[indices] = self.domains[domain].verify_all(problems, own)
            except Exception:
                for i in indices:  # find the problem it failed on
                    self.verify(*pairs[i])
                raise
        return rewards.reshape(len(names), -1)

    def _rendered(self, names: Sequence[ProblemId]) -> list[Prompt]:
        conversations = [self._build(name)[1] for name in names]
        try:
            return self._render(conversations)
        except Exception:
            for name, messages in zip(names, conversations, strict=True):
                try:
                    self._render([messages])
                except Exception as error:
                    error.add_note(_location("raised when rendering", name))
                    raise
            raise

    def _build(self, name: ProblemId) -> tuple[Problem, Sequence[Message]]:
        problem = self.domains[name.domain].problem(name.split, name.index)
        self._problems[name] = replace(problem, messages=())
        if len(self._problems) > _NUM_PROBLEMS:
            self._problems.popitem(last=False)
        return self._problems[name], problem.messages

    def _evict(self) -> None:
        """Drop the oldest prompts. Sizes are counted anew: a frozen tower adds features."""
        num_bytes = sum(prompt.num_bytes for prompt in self._entries.values())
        while len(self._entries) > self._size or num_bytes > self._max_bytes:
            _, prompt = self._entries.popitem(last=False)
            num_bytes -= prompt.num_bytes


def _location(what: str, name: ProblemId) -> str:
    return f"{what} {name.split} problem {name.index} of domain {name.domain!r}"

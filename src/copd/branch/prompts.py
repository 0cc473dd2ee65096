"""Problems by name to prompts as a model reads them, remembered for a while.

Knows domains and a renderer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from copd.domains.base import Domain
from copd.policy import Prompt
from copd.types import Completion, Message, Problem, ProblemId

_RENDERED_AT_ONCE = 16
"""Problems whose decoded pixels are in memory beside what is made of them."""

_NUM_PROBLEMS = 2**16
"""Problems remembered for their verifiers; each is a few hundred bytes of text."""


class PromptCache:
    """Rebuilds problems from their names, and keeps the latest ones while there is room.

    Branches of one base share a book, so a picture is prepared once for all, and seen once by a
    frozen vision tower.
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
    def aside(self) -> PromptCache:
        """A book for measurements: what it remembers displaces nothing that training reads."""
        return PromptCache(self.domains, self._render, size=self._size, max_bytes=self._max_bytes)

    def problem(self, name: ProblemId) -> Problem:
        """A problem as its verifier needs it, without messages: those hold decoded pixels.

        They are remembered longer than prompts, so that no clip is decoded to verify an answer.
        """
        problem = self._problems.get(name)
        return self._build(name)[0] if problem is None else problem

    def prompts(self, names: Sequence[ProblemId]) -> list[Prompt]:
        fresh = [name for name in dict.fromkeys(names) if name not in self._entries]
        for first in range(0, len(fresh), _RENDERED_AT_ONCE):
            some = fresh[first : first + _RENDERED_AT_ONCE]
            self._entries.update(zip(some, self._rendered(some), strict=True))
        for name in names:
            self._entries.move_to_end(name)
        prompts = [self._entries[name] for name in names]
        self._forget()
        return prompts

    def verify(self, name: ProblemId, text: str) -> float:
        """The reward of a completion; a verifier that fails is a bug and says where."""
        try:
            return self.domains[name.domain].verify(self.problem(name), text)
        except Exception as error:
            error.add_note(_where("raised by the verifier of", name))
            raise

    def verify_groups(
        self, names: Sequence[ProblemId], groups: Sequence[Sequence[Completion]]
    ) -> NDArray[np.float32]:
        """The rewards of all completions of every problem, shape `P G`; a domain sees its own
        at once."""
        pairs = [(n, c.text) for n, group in zip(names, groups, strict=True) for c in group]
        rewards = np.zeros(len(pairs), dtype=np.float32)
        for domain in dict.fromkeys(name.domain for name in names):
            places = [i for i, (name, _) in enumerate(pairs) if name.domain == domain]
            problems = [self.problem(pairs[i][0]) for i in places]
            texts = [pairs[i][1] for i in places]
            try:
                rewards[places] = self.domains[domain].verify_all(problems, texts)
            except Exception:
                for i in places:  # says on which problem it failed
                    self.verify(*pairs[i])
                raise
        return rewards.reshape(len(names), -1)

    def _rendered(self, names: Sequence[ProblemId]) -> list[Prompt]:
        """What cannot be rendered is a bug of its domain, and says where."""
        conversations = [self._build(name)[1] for name in names]
        try:
            return self._render(conversations)
        except Exception:
            for name, messages in zip(names, conversations, strict=True):
                try:
                    self._render([messages])
                except Exception as error:
                    error.add_note(_where("raised when rendering", name))
                    raise
            raise

    def _build(self, name: ProblemId) -> tuple[Problem, Sequence[Message]]:
        problem = self.domains[name.domain].problem(name.split, name.index)
        self._problems[name] = replace(problem, messages=())
        if len(self._problems) > _NUM_PROBLEMS:
            self._problems.popitem(last=False)
        return self._problems[name], problem.messages

    def _forget(self) -> None:
        """Drops the oldest; prompts grow when a frozen tower has read them, so all are counted."""
        num_bytes = sum(prompt.num_bytes for prompt in self._entries.values())
        while len(self._entries) > self._size or num_bytes > self._max_bytes:
            _, prompt = self._entries.popitem(last=False)
            num_bytes -= prompt.num_bytes


def _where(what: str, name: ProblemId) -> str:
    return f"{what} {name.split} problem {name.index} of domain {name.domain!r}"

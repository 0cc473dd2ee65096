"""Problems by name to prompts as a model reads them, remembered for a while.

Knows domains and a renderer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from copd.domains.base import Domain
from copd.policy import Prompt
from copd.types import Message, Problem, ProblemId


class PromptBook:
    """Rebuilds problems from their names, and keeps the latest ones while there is room.

    Branches of one base share a book, so a picture is prepared once for all, and seen once by a
    frozen vision tower.
    """

    def __init__(
        self,
        domains: Mapping[str, Domain],
        render: Callable[[Sequence[Message]], Prompt],
        *,
        size: int = 2048,
        max_bytes: int = 2**28,
    ) -> None:
        self.domains = domains
        self._render = render
        self._size = size
        self._max_bytes = max_bytes
        self._entries: OrderedDict[ProblemId, tuple[Problem, Prompt]] = OrderedDict()

    @cached_property
    def aside(self) -> PromptBook:
        """A book for measurements: what it remembers displaces nothing that training reads."""
        return PromptBook(self.domains, self._render, size=self._size, max_bytes=self._max_bytes)

    def problem(self, name: ProblemId) -> Problem:
        """A problem that was forgotten is rebuilt, but nothing is rendered for it."""
        entry = self._entries.get(name)
        return self._build(name) if entry is None else entry[0]

    def prompts(self, names: Sequence[ProblemId]) -> list[Prompt]:
        prompts = [self._entry(name)[1] for name in names]
        self._forget()
        return prompts

    def verify(self, name: ProblemId, text: str) -> float:
        """The reward of a completion; a verifier that fails is a bug and says where."""
        try:
            return self.domains[name.domain].verify(self.problem(name), text)
        except Exception as error:
            error.add_note(
                f"raised by the verifier of domain {name.domain!r} on {name.split} problem "
                f"{name.index}"
            )
            raise

    def _entry(self, name: ProblemId) -> tuple[Problem, Prompt]:
        entry = self._entries.pop(name, None)
        if entry is None:
            problem = self._build(name)
            entry = (problem, self._render(problem.messages))
        self._entries[name] = entry
        return entry

    def _build(self, name: ProblemId) -> Problem:
        return self.domains[name.domain].problem(name.split, name.index)

    def _forget(self) -> None:
        """Drops the oldest; prompts grow when a frozen tower has read them, so all are counted."""
        num_bytes = sum(prompt.num_bytes for _, prompt in self._entries.values())
        while len(self._entries) > self._size or num_bytes > self._max_bytes:
            _, (_, prompt) = self._entries.popitem(last=False)
            num_bytes -= prompt.num_bytes

"""Verifiers that run in worker processes: math-verify, and the user's function."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from copd.verifiers.answers import final_answer
from copd.verifiers.base import Pair, Verifier
from copd.verifiers.pool import Pool, WorkerSpec, pool_for

MEMORY_BYTES = 2**32
"""Address space for the evaluation of a completion, beyond that of the libraries."""


@dataclass(frozen=True)
class Math(Verifier):
    """1.0 for an answer that math-verify finds equal to the reference."""

    mark: str
    timeout_seconds: float

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        calls = [("reward", self._answer(text), answer) for text, answer in pairs]
        return [value or 0.0 for value in self._pool().run(calls)]

    def extract_answer(self, text: str) -> str:
        [value] = self._pool().run([("extract_answer", self._answer(text), "")])
        return value or ""

    def reference_error(self, answer: str) -> str:
        [is_unreadable] = self._pool().run([("reference_error", "", answer)])
        if is_unreadable is None:
            return f"answer {answer[:40]!r} takes more than {self.timeout_seconds:g} s to read"
        return f"answer {answer[:40]!r} cannot be read as mathematics" if is_unreadable else ""

    def format_reference(self, answer: str) -> str:
        return self.mark + answer if self.mark else f"\\boxed{{{answer}}}"

    def _answer(self, text: str) -> str:
        """Return the answer as a formula: math-verify looks only at LaTeX and expressions."""
        if not self.mark:
            return text
        found = final_answer(text, self.mark) or ""
        is_marked = any(mark in found for mark in ("$", "\\boxed", "\\(", "\\["))
        return found if is_marked or not found else f"${found}$"

    def _pool(self) -> Pool:
        remedy = "Try `python -c 'import math_verify'`."
        return pool_for(WorkerSpec("math", "{}", self.timeout_seconds, MEMORY_BYTES, remedy))


@dataclass(frozen=True)
class Function(Verifier):
    """The reward of the user's own function, by its dotted name."""

    name: str
    timeout_seconds: float
    memory_gib: float | None

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        return [value or 0.0 for value in self._pool().run(list(pairs))]

    def extract_answer(self, text: str) -> str:
        return ""  # a function returns nothing but a reward

    def format_reference(self, answer: str) -> str:
        return answer

    def check(self) -> None:
        """Load the function, so that a wrong name is found before training."""
        self._pool().check()

    def _pool(self) -> Pool:
        memory = None if self.memory_gib is None else int(self.memory_gib * 2**30)
        settings = json.dumps({"name": self.name})
        remedy = f"Correct the function, or name another one than {self.name!r} in the verifier."
        return pool_for(WorkerSpec("function", settings, self.timeout_seconds, memory, remedy))


def check_installed(module: str, what: str, extra: str) -> None:
    """Raise ValueError, with the extra to install, for an optional package that is missing."""
    if find_spec(module) is None:
        raise ValueError(
            f"{what} needs the package {module}: it is not installed. "
            f"Install it with `pip install 'copd[{extra}]'`."
        )

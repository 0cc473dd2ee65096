"""Problems from reasoning-gym's generators. No model; the generators run in worker processes.

They are not imported here: some order sets by the hash of text, which differs from process to
process unless it is fixed at the start, and their scorers evaluate what a model wrote.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from copd.config import GymConfig, num_problems
from copd.types import Message, Problem, ProblemId, Split, Text
from copd.verifiers import final_answer
from copd.verifiers.pool import Call, Pool, WorkerSpec, pool_for
from copd.verifiers.remote import MEMORY_BYTES, check_installed

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SPAN = 2**29
"""Seeds a split may use. A generator makes problem i from its seed + i, so splits keep apart."""


@dataclass(frozen=True)
class GymDomain:
    """Problems of one or several generators in turn; each generator is a suite."""

    name: str
    config: GymConfig

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(self.config.parameters)

    @property
    def modality(self) -> str:
        return "text"

    def num_problems(self, split: Split) -> int:
        return num_problems(self.config, split)

    def problem(self, split: Split, index: int) -> Problem:
        if not 0 <= index < self.num_problems(split):
            raise IndexError(
                f"domain {self.name!r} has {self.num_problems(split)} {split} problems: "
                f"got index {index}"
            )
        name = ProblemId(self.name, split, index)
        [made] = self._pool().run([("problem", *self._place(name))])
        if made is None:
            raise ValueError(
                f"generator {self._place(name)[0]!r} could not make {split} problem {index} of "
                f"domain {self.name!r} within {self.config.timeout_seconds:g} s: it failed or took "
                f"too long. Change domains.{self.name}.config, or raise its timeout_seconds."
            )
        question, answer = made
        system = self.config.system_prompt
        first = () if system is None else (Message("system", (Text(system),)),)
        asked = Message("user", (Text(question + self.config.prompt_suffix),))
        return Problem(name, self._place(name)[0], (*first, asked), answer)

    def verify(self, problem: Problem, text: str) -> float:
        return self.verify_all([problem], [text])[0]

    def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """The generator's own score; 0.0 without an answer."""
        found = [final_answer(text, self.config.mark) for text in texts]
        calls = {
            i: ("reward", *self._place(problem.id), answer)
            for i, (problem, answer) in enumerate(zip(problems, found, strict=True))
            if answer
        }
        values = dict(zip(calls, self._pool().run(list(calls.values())), strict=True))
        return [values.get(i) or 0.0 for i in range(len(problems))]

    def extract_answer(self, problem: Problem, text: str) -> str:
        return final_answer(text, self.config.mark) or ""

    def check(self) -> None:
        """Refuses unknown generators and parameters."""
        self._pool().check()

    def _place(self, name: ProblemId) -> Call:
        suite = self.suites[name.index % len(self.suites)]
        return suite, name.split, name.index // len(self.suites)

    def _pool(self) -> Pool:
        begin = zlib.crc32(str(self.config.seed).encode()) % (_SPAN // 2)
        settings = {
            "datasets": self.config.parameters,
            "first": {split: i * _SPAN + begin for i, split in enumerate(_SPLITS)},
            "size": {split: -(-self.num_problems(split) // len(self.suites)) for split in _SPLITS},
        }
        key = f"domains.{self.name}"
        remedy = f"Correct {key}.dataset or {key}.config, or lower its numbers of problems."
        seconds = self.config.timeout_seconds
        return pool_for(WorkerSpec("gym", json.dumps(settings), seconds, MEMORY_BYTES, remedy))


def load_gym(name: str, config: GymConfig) -> GymDomain:
    """The domain; its generators are made once, so that a mistake in them is found now."""
    check_installed("reasoning_gym", f"domain {name!r}", "gym")
    domain = GymDomain(name, config)
    domain.check()
    return domain

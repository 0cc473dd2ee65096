"""Problems from the generators of reasoning-gym, which run in worker processes.

The generators are not imported here. Some iterate over sets of strings, whose order differs from
process to process unless the hash seed is fixed at the start; and their scorers evaluate text that
a model wrote.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from copd.config import GymConfig, num_problems
from copd.domains.base import check_index
from copd.types import Message, Problem, ProblemId, Split, Text
from copd.verifiers import final_answer
from copd.verifiers.pool import Call, Pool, WorkerSpec, pool_for
from copd.verifiers.remote import MEMORY_BYTES, check_installed

_SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_SPAN = 2**29
"""Number of seeds of a split. A generator makes problem i from seed + i, so splits are disjoint."""


@dataclass(frozen=True)
class GymDomain:
    """Problems of several generators in turn; each generator is a suite."""

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
        check_index(self, split, index)
        name = ProblemId(self.name, split, index)
        generator, *position = self._position(name)
        [generated] = self._pool().run([("problem", generator, *position)])
        if generated is None:
            raise ValueError(
                f"generator {generator!r} could not make {split} problem {index} of "
                f"domain {self.name!r} within {self.config.timeout_seconds:g} s: it failed or took "
                f"too long. Change domains.{self.name}.config, or raise its timeout_seconds."
            )
        prompt, answer = generated
        system = self.config.system_prompt
        first = () if system is None else (Message("system", (Text(system),)),)
        user = Message("user", (Text(prompt + self.config.prompt_suffix),))
        return Problem(name, generator, (*first, user), answer)

    def verify(self, problem: Problem, text: str) -> float:
        return self.verify_all([problem], [text])[0]

    def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        """Return the scores of the generators' own scorers; 0.0 where there is no answer."""
        answers = [final_answer(text, self.config.mark) for text in texts]
        calls = {
            i: ("reward", *self._position(problem.id), answer)
            for i, (problem, answer) in enumerate(zip(problems, answers, strict=True))
            if answer
        }
        values = dict(zip(calls, self._pool().run(list(calls.values())), strict=True))
        return [values.get(i) or 0.0 for i in range(len(problems))]

    def extract_answer(self, problem: Problem, text: str) -> str:
        return final_answer(text, self.config.mark) or ""

    def check(self) -> None:
        """Raise ValueError for unknown generators and parameters."""
        self._pool().check()

    def _position(self, name: ProblemId) -> Call:
        """Return generator, split, and the index among the generator's problems."""
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
    """Build the domain, and its generators once, so that a mistake in their settings is found."""
    check_installed("reasoning_gym", f"domain {name!r}", "gym")
    domain = GymDomain(name, config)
    domain.check()
    return domain

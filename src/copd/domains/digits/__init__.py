"""The digits world: text, image and video problems over scanned handwritten digits.

It needs no files and no network.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from copd.domains.base import check_index
from copd.domains.digits import image, text, video
from copd.domains.digits.generator import Question, SuiteGenerator
from copd.types import Message, Problem, ProblemId, Split
from copd.verifiers import exact, final_answer

MODALITIES: Mapping[str, Mapping[str, SuiteGenerator]] = {
    "text": text.SUITES,
    "image": image.SUITES,
    "video": video.SUITES,
}

_SPLIT_SEEDS: dict[Split, int] = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class DigitsDomain:
    """Problems of one modality.

    Held-out splits use scans and seeds that training never sees.
    """

    name: str
    modality: str
    suites: tuple[str, ...]
    sizes: Mapping[Split, int]

    def __post_init__(self) -> None:
        known = MODALITIES[self.modality]
        for suite in self.suites:
            if suite not in known:
                raise ValueError(
                    f"domain {self.name!r} names an unknown suite: got {suite!r}, expected one of "
                    f"{', '.join(known)} for {self.modality}. Correct domains.{self.name}.suites."
                )

    def num_problems(self, split: Split) -> int:
        return self.sizes[split]

    def problem(self, split: Split, index: int) -> Problem:
        generated = self.generate(split, index)
        return Problem(
            id=ProblemId(self.name, split, index),
            suite=self._suite(index),
            messages=(Message("user", generated.parts),),
            answer=generated.answer,
        )

    def verify(self, problem: Problem, text: str) -> float:
        return exact(text, problem.answer)

    def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [self.verify(*each) for each in zip(problems, texts, strict=True)]

    def extract_answer(self, problem: Problem, text: str) -> str:
        return final_answer(text) or ""

    def generate(self, split: Split, index: int) -> Question:
        """Generate the question of a problem, with the seed (suite, split, index)."""
        check_index(self, split, index)
        suite = self._suite(index)
        seed = [zlib.crc32(suite.encode()), _SPLIT_SEEDS[split], index]
        return MODALITIES[self.modality][suite](np.random.default_rng(seed), split)

    def _suite(self, index: int) -> str:
        return self.suites[index % len(self.suites)]

"""The cases to measure: shapes, targets, planned completion lengths and problems."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from copd.types import Image, Message, Problem, ProblemId, Split, Text, Video

Side = Literal["ours", "trl", "repeated", "parts", "matmul", "steps"]


@dataclass(frozen=True)
class Case:
    """One shape, and the reference that copd is compared with."""

    name: str
    title: str
    reference: Side
    target: float
    """The least ratio of reference time to our time."""

    media: tuple[int, ...] = ()
    """Empty for text, `H W` of a picture, `F H W` of a clip."""

    work: Literal["grpo", "distill", "mutual"] = "grpo"
    num_teachers: int = 2
    """Teachers of a distillation; each has its own domain."""

    group_size: int = 8
    lengths: tuple[int, int] = (24, 24)
    """Shortest and longest completion; lengths between them are geometric."""

    num_prompts: int = 16
    """Prompts of a step, over all domains."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains of a step, one batch each."""
        return ("shapes",) if self.work == "grpo" else ("native", "cross")[: self.num_teachers]

    @property
    def prompts_per_batch(self) -> int:
        return self.num_prompts // len(self.domains)

    @property
    def num_rows(self) -> int:
        """Completions of a step."""
        return self.num_prompts * self.group_size


_ONE, _TWO = "one teacher, one completion", "two teachers, eight completions"
_LIST = (
    Case("text", "GRPO, text", "trl", 1.9),
    Case("image64", "GRPO, image 64x64", "trl", 2.9, (64, 64)),
    Case("ragged", "GRPO, text, ragged lengths 4 to 96", "trl", 2.5, lengths=(4, 96)),
    Case("video32", "GRPO, video 8x32x32", "repeated", 3.5, (8, 32, 32)),
    Case("distill1", f"distillation, text, {_ONE}", "trl", 1.2, (), "distill", 1, group_size=1),
    Case("distill8", f"distillation, text, {_TWO}", "trl", 2.0, (), "distill"),
    Case(
        *("mutual", "mutual step of a branch, text, against its parts", "parts", 1 / 1.1),
        work="mutual",
        num_prompts=32,
    ),
    Case("image256", "GRPO, image 256x256 (256 visual tokens)", "trl", 8.0, (256, 256)),
    Case("video128", "GRPO, video 8x128x128 (256 visual tokens)", "repeated", 8.0, (8, 128, 128)),
)
CASES = {case.name: case for case in _LIST}


def planned_lengths(case: Case, step: int) -> NDArray[np.int64]:
    """Return the tokens of each completion of a step, shape `B`, the same for both sides.

    Ragged lengths are geometric with a mean of 24 before they are cut at the longest.
    """
    shortest, longest = case.lengths
    rng = np.random.default_rng([zlib.crc32(case.name.encode()), step])
    if shortest == longest:
        return np.full(case.num_rows, longest)
    lengths = shortest - 1 + rng.geometric(1 / (25 - shortest), size=case.num_rows)
    return np.minimum(lengths, longest)


@dataclass(frozen=True)
class Shapes:
    """A domain whose problems have the shape of a case, with a cheap verifier."""

    name: str
    media: tuple[int, ...]
    suites: tuple[str, ...] = ("shapes",)

    @property
    def modality(self) -> str:
        return ("text", "image", "video")[max(0, len(self.media) - 1)]

    def num_problems(self, split: Split) -> int:
        return 100_000

    def problem(self, split: Split, index: int) -> Problem:
        return _problem(self.name, self.media, split, index)

    def problems(self, step: int, count: int) -> list[Problem]:
        """Return the training problems of a step; none occurs in another step."""
        return [self.problem("train", index) for index in range(step * count, (step + 1) * count)]

    def verify(self, problem: Problem, text: str) -> float:
        return digit_share(text)

    def extract_answer(self, problem: Problem, text: str) -> str:
        return text

    def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        return [self.verify(*each) for each in zip(problems, texts, strict=True)]


def digit_share(text: str) -> float:
    """Return the share of digits: cheap, in [0, 1], and seldom equal within a group."""
    return sum(character.isdigit() for character in text) / max(1, len(text))


@lru_cache(maxsize=64)  # TRL reads a row once per completion
def _problem(name: str, media: tuple[int, ...], split: Split, index: int) -> Problem:
    rng = np.random.default_rng([zlib.crc32(name.encode()), index])
    left, right = rng.integers(10, 100, size=2)
    text = Text(f"{left} + {right}=")
    content: tuple[Text | Image | Video, ...] = (text,)
    if media:
        pixels = rng.integers(0, 256, size=(*media, 3), dtype=np.uint8)
        content = (Image(pixels) if len(media) == 2 else Video(pixels, fps=2.0), text)
    messages = (Message("user", content),)
    return Problem(ProblemId(name, split, index), "shapes", messages, str(left + right))

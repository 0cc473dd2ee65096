"""The layout of a completion as a verifier, and verifiers mixed with weights. Runs no process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from copd.verifiers.base import Pair, Verifier


@dataclass(frozen=True)
class Format:
    """1.0 for blocks of tags in order, each once, with something in each and nothing between."""

    tags: tuple[str, ...]

    def reward(self, text: str, answer: str) -> float:
        found = self._pattern.fullmatch(text.strip())
        return float(found is not None and all(self._is_filled(block) for block in found.groups()))

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        return [self.reward(*pair) for pair in pairs]

    def extract_answer(self, text: str) -> str:
        return " ".join(f"<{tag}>" for tag in self.tags) if self.reward(text, "") else ""

    def reference_error(self, answer: str) -> str:
        return ""

    def format_reference(self, answer: str) -> str:
        *before, last = self.tags
        return "".join(f"<{tag}>...</{tag}>" for tag in before) + f"<{last}>{answer}</{last}>"

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(
            r"\s*".join(rf"<{t}>([^<]*(?:<(?!/?{t}>)[^<]*)*)</{t}>" for t in self.tags)
        )

    def _is_filled(self, block: str) -> bool:
        return bool(block.strip()) and not any(f"<{tag}>" in block for tag in self.tags)


@dataclass(frozen=True)
class Mixture:
    """The weighted sum of several verifiers; the weights sum to 1."""

    weights: tuple[float, ...]
    parts: tuple[Verifier, ...]

    def reward(self, text: str, answer: str) -> float:
        return self.rewards([(text, answer)])[0]

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        earned = zip(*(part.rewards(pairs) for part in self.parts), strict=True)
        return [self._sum(each) for each in earned]

    def extract_answer(self, text: str) -> str:
        """What the first part takes for the answer."""
        return self.parts[0].extract_answer(text)

    def reference_error(self, answer: str) -> str:
        return next((said for part in self.parts if (said := part.reference_error(answer))), "")

    def format_reference(self, answer: str) -> str:
        return self.parts[0].format_reference(answer)

    def _sum(self, earned: Sequence[float]) -> float:
        """Full marks are exactly 1, as accuracy asks for, whatever the weights round to."""
        if all(reward == 1.0 for reward in earned):
            return 1.0
        return min(1.0, sum(w * reward for w, reward in zip(self.weights, earned, strict=True)))

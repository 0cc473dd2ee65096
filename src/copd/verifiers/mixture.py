"""Verifiers of the layout of a completion, and weighted mixtures of verifiers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from copd.verifiers.base import Pair, Verifier


@dataclass(frozen=True)
class Format(Verifier):
    """1.0 for non-empty blocks of the tags in order, each once, with nothing between them."""

    tags: tuple[str, ...]

    def reward(self, text: str, answer: str) -> float:
        found = self._pattern.fullmatch(text.strip())
        return float(found is not None and all(self._is_filled(block) for block in found.groups()))

    def extract_answer(self, text: str) -> str:
        return " ".join(f"<{tag}>" for tag in self.tags) if self.reward(text, "") else ""

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
class Mixture(Verifier):
    """The weighted sum of several verifiers; the weights sum to 1.

    The first one extracts the answer.
    """

    weights: tuple[float, ...]
    parts: tuple[Verifier, ...]

    def rewards(self, pairs: Sequence[Pair]) -> list[float]:
        by_part = [part.rewards(pairs) for part in self.parts]
        return [self._weighted_sum(rewards) for rewards in zip(*by_part, strict=True)]

    def extract_answer(self, text: str) -> str:
        return self.parts[0].extract_answer(text)

    def reference_error(self, answer: str) -> str:
        return next(filter(None, (part.reference_error(answer) for part in self.parts)), "")

    def format_reference(self, answer: str) -> str:
        return self.parts[0].format_reference(answer)

    def _weighted_sum(self, rewards: Sequence[float]) -> float:
        """Return the sum; exactly 1 for full rewards, as accuracy needs, despite rounding."""
        if all(reward == 1.0 for reward in rewards):
            return 1.0
        return min(1.0, sum(w * reward for w, reward in zip(self.weights, rewards, strict=True)))

"""How long the prompts of a run will be, from its first problems and the model's tokenizer.

Only of the built-in world, whose problems are made at once: data files are not opened.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from copd.config import Config, DigitsConfig
from copd.memory.load import Lengths
from copd.memory.shapes import Shapes

if TYPE_CHECKING:
    from copd.types import Problem

_NUM_PROBLEMS = 16
"""Looked at per domain."""

_TEMPLATE = "user\n\nassistant\n"
_TURN_TOKENS = 3
"""What a chat template usually puts around one turn: words, and control tokens."""

_TIMESTAMP = "<1.2 seconds>"
"""Before the visual tokens of a moment of a clip, between two control tokens."""

_AROUND_PICTURE = 2

_TEXT_TOKENS, _VISUAL_TOKENS = 256, 1024
"""Of a prompt that nobody tells; the second only where the model sees."""

Count = Callable[[str], int]
"""Tokens of a text."""


def find_lengths(
    config: Config,
    shapes: Shapes,
    files: Path,
    *,
    prompt_tokens: int | None,
    visual_tokens: int | None,
    completion_tokens: int | None,
) -> Lengths:
    """Told, or else looked at, or else assumed; completions have their limit by default."""
    completion = completion_tokens or config.rollout.max_completion_tokens
    own = {n: d for n, d in config.domains.items() if isinstance(d, DigitsConfig)}
    tokenizer = files / "tokenizer.json"
    if prompt_tokens is None and len(own) == len(config.domains) and tokenizer.is_file():
        return _look(own, shapes, tokenizer, completion)
    visual = visual_tokens or 0
    if shapes.tower is not None and prompt_tokens is None and visual_tokens is None:
        visual = _VISUAL_TOKENS
    prompt = prompt_tokens or _TEXT_TOKENS + visual
    if visual > prompt:
        raise ValueError(
            f"a prompt of {prompt} tokens cannot have {visual} that stand for pixels. "
            "Raise --prompt-tokens: it counts them, too."
        )
    return Lengths(prompt, visual, completion, prompt)


def visual_tokens_of(side: int, height: int, width: int) -> int:
    """Visual tokens of a picture: its sides are rounded to whole tokens of `side` pixels."""
    return max(1, round(height / side)) * max(1, round(width / side))


def _look(
    own: dict[str, DigitsConfig], shapes: Shapes, tokenizer: Path, completion: int
) -> Lengths:
    from tokenizers import Tokenizer

    from copd.domains import load_domains

    reader = Tokenizer.from_file(str(tokenizer))

    def count(text: str) -> int:
        return len(reader.encode(text, add_special_tokens=False).ids)

    sizes = [
        [_size(domain.problem("train", index), shapes, count) for index in range(_NUM_PROBLEMS)]
        for domain in load_domains(own).values()
    ]
    of_domains = [[mean(column) for column in zip(*each, strict=True)] for each in sizes]
    prompt, visual = (math.ceil(mean(column)) for column in zip(*of_domains, strict=True))
    return Lengths(prompt, visual, completion, max(size for each in sizes for size, _ in each))


def _size(problem: Problem, shapes: Shapes, count: Count) -> tuple[int, int]:
    """Tokens of a problem's prompt, and how many of them stand for pixels."""
    from copd.types import Text, Video

    side = shapes.tower.side if shapes.tower else sys.maxsize
    text, visual = count(_TEMPLATE) + _TURN_TOKENS, 0
    for part in (part for message in problem.messages for part in message.content):
        if isinstance(part, Text):
            text += count(part.text)
        elif isinstance(part, Video):
            num_frames, height, width, _ = part.frames.shape
            moments = math.ceil(num_frames / 2)
            text += moments * (count(_TIMESTAMP) + _AROUND_PICTURE)
            visual += moments * visual_tokens_of(side, height, width)
        else:
            text += _AROUND_PICTURE
            visual += visual_tokens_of(side, *part.pixels.shape[:2])
    return text + visual, visual

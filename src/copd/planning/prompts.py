"""How long the prompts of a run will be: told, known of the built-in world, or assumed.

Opens no data and no tokenizer.
"""

from __future__ import annotations

import math
from statistics import mean

from copd.config import Config, DigitsConfig
from copd.planning.shapes import Shapes
from copd.planning.workload import Lengths

_WORLD = {"text": (38, 59, 0, 0, 0), "image": (16, 18, 1, 32, 32), "video": (22, 24, 5, 16, 16)}
"""Of a problem of the built-in world: characters, at most so many, moments, height and width."""

_TEMPLATE = 20
"""Tokens around a turn, read character by character."""

_TIMESTAMP = 15
"""The same of the time before each moment of a clip."""

_TEXT_TOKENS, _VISUAL_TOKENS = 256, 1024
"""Of a prompt that nobody tells; the second only where the model sees."""


def find_lengths(
    config: Config,
    shapes: Shapes,
    *,
    prompt_tokens: int | None,
    visual_tokens: int | None,
    completion_tokens: int | None,
) -> Lengths:
    """Told, or else known, or else assumed; completions have their limit by default."""
    completion = completion_tokens or config.rollout.max_completion_tokens
    own = [d for d in config.domains.values() if isinstance(d, DigitsConfig)]
    if prompt_tokens is None and visual_tokens is None and len(own) == len(config.domains):
        return _of_world(own, shapes, completion)
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


def _of_world(domains: list[DigitsConfig], shapes: Shapes, completion: int) -> Lengths:
    """The mean over domains, each character a token."""
    prompts, pixels, longest = [], [], []
    for domain in domains:
        characters, most, moments, height, width = _WORLD[domain.modality]
        side = shapes.tower.side if shapes.tower else 1
        visual = moments * math.ceil(height / side) * math.ceil(width / side)
        around = _TEMPLATE + visual + (_TIMESTAMP * moments if domain.modality == "video" else 0)
        prompts.append(characters + around)
        longest.append(most + around)
        pixels.append(visual)
    return Lengths(round(mean(prompts)), round(mean(pixels)), completion, max(longest))

"""The kills of a run, drawn before it begins."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Kind = Literal["process", "machine", "raylet", "hang"]
"""A branch's process ends; its machine's raylet ends with all its processes; that raylet alone ends
(its branches may survive it by some seconds); or the process stops for good without ending."""

KINDS: tuple[Kind, ...] = get_args(Kind)
METHODS = ("sample", "score", "update", "evaluate", "save")
RECOVERY = "recovery"
"""The recovery from an earlier kill; it is hit as often as a method."""

MERGE = "weights"
"""The first method of the merge; the last of several kills hits it."""

LONGEST_DELAY = {RECOVERY: 15.0}
"""In seconds after the first call; 0.5 s for other stages."""


@dataclass(frozen=True)
class Kill:
    """One kill."""

    step: int
    """It happens in this step or, where that lacks the stage, soon after it."""
    stage: str
    kind: Kind
    share: float
    """Selects the branch: its place among those that live then, from 0 to 1."""
    delay: float
    """Seconds after the first call of the stage."""


def draw(seed: int, count: int, num_steps: int) -> list[Kill]:
    """Draw kills over all steps, with kinds and stages in equal numbers as far as possible."""
    rng = random.Random(seed)
    kinds = _cycle(rng, KINDS, count)
    stages = [rng.choice(METHODS), *_cycle(rng, (*METHODS, RECOVERY), count - 2), MERGE][:count]
    steps = sorted(rng.randint(1, num_steps - 1) for _ in range(count))
    for index, stage in enumerate(stages):
        if stage == RECOVERY:
            steps[index] = steps[index - 1]
        elif stage == MERGE:
            steps[index] = num_steps + 1
    delays = [rng.uniform(0.0, LONGEST_DELAY.get(stage, 0.5)) for stage in stages]
    return [
        Kill(step, stage, kind, rng.randrange(1000) / 1000, round(delay, 3))
        for step, stage, kind, delay in zip(steps, stages, kinds, delays, strict=True)
    ]


def _cycle(rng: random.Random, values: Sequence[Any], count: int) -> list[Any]:
    """Return each value equally often, shuffled."""
    order = rng.sample(values, len(values))
    drawn = [order[index % len(order)] for index in range(count)]
    rng.shuffle(drawn)
    return drawn

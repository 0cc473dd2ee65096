"""Which deaths happen and when, drawn before the run begins. Knows no process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["process", "machine", "raylet", "hang"]
"""What happens: a branch's process ends; its machine's raylet with all processes there; that raylet
alone, which its branches may outlive for some seconds; or the process stops for good, but stays."""

KINDS: tuple[Kind, ...] = ("process", "machine", "raylet", "hang")
VERBS = ("sample", "score", "update", "evaluate", "save")
RECOVERY = "recovery"
"""What follows an earlier death; it is hit as often as a method."""

MERGE = "weights"
"""The method with which the merge begins; the last of several kills hits it."""

LONGEST_DELAY = {RECOVERY: 15.0}
"""Seconds after the first branch was asked; elsewhere half of one."""


@dataclass(frozen=True)
class Kill:
    """One death, drawn before the run begins."""

    step: int
    """In this step or, where that lacks the stage, soon after it."""
    stage: str
    kind: Kind
    share: float
    """Which of the branches that live then: its place among them, from 0 to 1."""
    delay: float
    """Seconds after somebody was asked for the stage."""


def draw(seed: int, count: int, num_steps: int) -> list[Kill]:
    """Steps drawn over the whole run, as many of every kind and stage as can be."""
    dice = random.Random(seed)
    kinds = _cycle(dice, KINDS, count)
    stages = [dice.choice(VERBS), *_cycle(dice, (*VERBS, RECOVERY), count - 2), MERGE][:count]
    steps = sorted(dice.randint(1, num_steps - 1) for _ in range(count))
    for index, stage in enumerate(stages):
        if stage == RECOVERY:
            steps[index] = steps[index - 1]
        elif stage == MERGE:
            steps[index] = num_steps + 1
    delays = [dice.uniform(0.0, LONGEST_DELAY.get(stage, 0.5)) for stage in stages]
    return [
        Kill(step, stage, kind, dice.randrange(1000) / 1000, round(delay, 3))
        for step, stage, kind, delay in zip(steps, stages, kinds, delays, strict=True)
    ]


def _cycle(dice: random.Random, values: Sequence[Any], count: int) -> list[Any]:
    """Each value as often as the others, in a drawn order."""
    order = dice.sample(values, len(values))
    drawn = [order[index % len(order)] for index in range(count)]
    dice.shuffle(drawn)
    return drawn

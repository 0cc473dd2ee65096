"""The least work a step can be, counted on paper, and how fast this machine multiplies matrices.

Knows sizes only; no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from benchmarks.cases import Case, Shapes, planned_lengths
from benchmarks.turns import Turns
from copd.planning.cluster import Widths
from copd.policy.rendering.render import Prompt, Renderer

_TRAIN, _TRAIN_WEIGHTS, _ASK = 3, 2, 1
"""Passes' worth of a matmul: forward and both gradients; without the input's; forward alone."""


@dataclass(frozen=True, eq=False)
class Group:
    """One prompt and its completions, as lengths."""

    prompt: int
    """Tokens, visual ones included."""
    frames: tuple[int, ...]
    """Patches of each picture or temporal slice; vision attends within one."""
    completions: NDArray[np.int64]


def least_flops(widths: Widths, groups: Sequence[Group], *, num_askings: int = 0) -> int:
    """FLOPs of matmuls and attention if nothing is ever done twice.

    Let a layer's matrices have w weights, d = heads x width of a head, and a completion have T
    tokens after a prompt of L. The last token is never run, the first is predicted by the prompt:

        run      R = L + sum (T - 1)                                   tokens through the layers
        pairs    A = L (L + 1) / 2 + sum ((T - 1) L + (T - 1) T / 2)   query and key that meet
        forward  F = layers (2 w R + 4 d A) + 2 D V sum T + vision

    Vision is patch embedding, blocks (attention within a frame) and mergers, once per prompt.
    Learning costs 3 F (forward, gradient of inputs, gradient of weights); only the patch embedding
    has no gradient of its input. Sampling costs nothing beyond: its forward pass is the update's.
    A teacher asked about the group costs F once more, an asking. No softmax, norm or optimizer.
    """
    total = 0.0
    for group in groups:
        text = _text_flops(widths, group)
        embedding = widths.patch_flops(group.frames)
        vision = widths.vision_flops(group.frames)
        total += (_TRAIN + _ASK * num_askings) * (text + vision)
        total += (_TRAIN_WEIGHTS + _ASK * num_askings) * embedding
    return int(total)


def _text_flops(widths: Widths, group: Group) -> float:
    length, completions = group.prompt, group.completions
    own = (completions - 1) * length + (completions - 1) * completions // 2
    return widths.text_flops(
        run=length + int((completions - 1).sum()),
        pairs=length * (length + 1) // 2 + int(own.sum()),
        predicted=int(completions.sum()),
    )


def groups_of(case: Case, step: int, folder: Path) -> list[Group]:
    """The shapes of a step's groups; every problem of a case is as long as the first."""
    prompt = _first_prompt(case, folder)
    grid = prompt.media.get("image_grid_thw", prompt.media.get("video_grid_thw"))
    frames: tuple[int, ...] = ()
    if grid is not None:
        frames = tuple(h * w for t, h, w in grid.tolist() for _ in range(t))
    lengths = planned_lengths(case, step).reshape(case.num_prompts, case.group_size)
    return [Group(len(prompt.input_ids), frames, own) for own in lengths]


def least_of_step(case: Case, step: int, folder: Path) -> int:
    """`least_flops` of a whole step; in distillation every group is asked about once, in a mutual
    step every second one."""
    widths, groups = (
        Widths.read(AutoConfig.from_pretrained(folder).to_dict()),
        groups_of(case, step, folder),
    )
    if case.work == "mutual":
        half = len(groups) // 2
        asked = least_flops(widths, groups[half:], num_askings=1)
        return least_flops(widths, groups[:half]) + asked
    return least_flops(widths, groups, num_askings=int(case.work == "distill"))


def take_turns(case: Case, folder: Path, turns: Turns) -> None:
    """Per turn, the matmuls of the text layers alone, at the update's number of rows.

    Forward, gradient of the input and gradient of the weight; its FLOPs over its seconds are the
    rate that a step is held against.
    """
    widths = Widths.read(AutoConfig.from_pretrained(folder).to_dict())
    groups = groups_of(case, 0, folder)
    run = sum(group.prompt + int((group.completions - 1).sum()) for group in groups)
    generator = torch.Generator().manual_seed(0)
    pieces = [
        (torch.randn(run, i, generator=generator), torch.randn(run, o, generator=generator), w)
        for i, o in widths.text.values()
        for w in [torch.randn(i, o, generator=generator)]
    ]
    turns.model_comes_now()
    turns.ready(rows=run)
    while turns.next():
        for _ in range(widths.num_layers):
            for inputs, outputs, weight in pieces:
                torch.mm(inputs, weight)
                torch.mm(outputs, weight.T)
                torch.mm(inputs.T, outputs)


def _first_prompt(case: Case, folder: Path) -> Prompt:
    renderer = Renderer.load(str(folder), AutoConfig.from_pretrained(folder))
    return renderer.render(Shapes(case.domains[0], case.media).problem("train", 0).messages)

"""The least work of a step, counted on paper, and the matrix product rate of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig

from benchmarks.cases import Case, planned_lengths
from benchmarks.cases import Shapes as Problems
from benchmarks.turns import Turns
from copd.planning.cluster.work import text_flops, vision_flops
from copd.planning.shapes import Shapes, read_shapes
from copd.planning.workload import Lengths, Workload
from copd.policy.rendering.render import Renderer

_TRAIN, _TRAIN_WEIGHTS, _SCORE = 3, 2, 1
"""Passes' worth of a product: forward and both gradients; without the input's; forward alone."""


@dataclass(frozen=True, eq=False)
class Group:
    """The lengths of a prompt and its completions."""

    prompt: int
    """Tokens, visual ones included."""
    frames: tuple[int, ...]
    """Patches of each picture or temporal slice, all equal; vision attends within one."""
    completions: NDArray[np.int64]


def least_flops(shapes: Shapes, groups: Sequence[Group], *, num_scorings: int = 0) -> int:
    """Return the FLOPs of matrix products and attention if nothing is done twice.

    Let a layer's matrices have w weights, d = heads x width of a head, and a completion have T
    tokens after a prompt of L. The last token is never run, the first is predicted by the prompt:

        run      R = L + sum (T - 1)                                   tokens through the layers
        pairs    A = L (L + 1) / 2 + sum ((T - 1) L + (T - 1) T / 2)   pairs of query and key
        forward  F = layers (2 w R + 4 d A) + 2 D V sum T + vision

    Vision is patch embedding, blocks (attention within a frame) and mergers, once per prompt.
    Training costs 3 F (forward, gradients of inputs and of weights); only the patch embedding has
    no gradient of its input. Sampling adds nothing: its forward pass is that of the update. Each
    scoring by a teacher adds F. Softmax, norms and the optimizer are not counted.
    """
    total = 0.0
    for group in groups:
        length, completions = group.prompt, group.completions
        own = (completions - 1) * length + (completions - 1) * completions // 2
        text = text_flops(
            shapes,
            run=length + int((completions - 1).sum()),
            pairs=length * (length + 1) // 2 + int(own.sum()),
            predicted=int(completions.sum()),
        )
        vision, embedding = _vision_flops(shapes, group.frames)
        total += (_TRAIN + _SCORE * num_scorings) * (text + vision)
        total += (_TRAIN_WEIGHTS + _SCORE * num_scorings) * embedding
    return int(total)


def _vision_flops(shapes: Shapes, frames: Sequence[int]) -> tuple[float, float]:
    """Return a pass of the tower over frames without its patch embedding, and that one's."""
    if shapes.tower is None or not frames:
        return 0.0, 0.0
    tokens = sum(frames) // shapes.tower.patches_per_token
    lengths = Lengths(mean=1, square=1.0, longest=1.0)
    load = Workload(1, 1, tokens, lengths, visual_tokens=tokens, pictures=len(frames))
    embedding = 2.0 * shapes.tower.patch_weights * sum(frames)
    return vision_flops(shapes, load) - embedding, embedding


def groups_of(case: Case, step: int, folder: Path) -> list[Group]:
    """Return the groups of a step; all problems of a case are as long as the first."""
    renderer = Renderer.load(str(folder), AutoConfig.from_pretrained(folder))
    problem = Problems(case.domains[0], case.media).problem("train", 0)
    prompt = renderer.render(problem.messages)
    grid = prompt.media.get("image_grid_thw", prompt.media.get("video_grid_thw"))
    grids = [] if grid is None else grid.tolist()
    frames = tuple(h * w for t, h, w in grids for _ in range(t))
    lengths = planned_lengths(case, step).reshape(case.num_prompts, case.group_size)
    return [Group(len(prompt.input_ids), frames, own) for own in lengths]


def least_of_step(case: Case, step: int, folder: Path) -> int:
    """Return `least_flops` of a step.

    A teacher scores every group of a distillation, and every second one of a mutual step.
    """
    shapes, groups = read_shapes(folder), groups_of(case, step, folder)
    num_scored = {"grpo": 0, "distill": len(groups), "mutual": len(groups) - len(groups) // 2}
    first = len(groups) - num_scored[case.work]
    scored = least_flops(shapes, groups[first:], num_scorings=1)
    return least_flops(shapes, groups[:first]) + scored


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int = 0) -> None:
    """Multiply the matrices of the text layers alone, with as many rows as the update has.

    A turn is forward, gradient of the input and gradient of the weight. Its FLOPs over its seconds
    are the rate that a step is compared with.
    """
    shapes, groups = read_shapes(folder), groups_of(case, 0, folder)
    num_rows = sum(group.prompt + int((group.completions - 1).sum()) for group in groups)
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator)

    of_layer = list(shapes.linears.values())[: len(shapes.linears) // shapes.layers]
    products = [(random(num_rows, i), random(num_rows, o), random(i, o)) for o, i in of_layer]
    turns.start_memory()
    turns.ready(rows=num_rows)
    while turns.next():
        for _ in range(shapes.layers):
            for inputs, outputs, weight in products:
                torch.mm(inputs, weight)
                torch.mm(outputs, weight.T)
                torch.mm(inputs.T, outputs)

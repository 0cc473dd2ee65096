"""The least work: by hand, and against torch's counter on the real model."""

from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.cases import Shapes as Problems
from benchmarks.floor import Group, groups_of, least_flops, least_of_step, take_turns
from benchmarks.turns import Turns, flop_counter
from copd.planning.shapes import Shapes, Tower, read_shapes
from copd.policy import Policy
from tests.packing import flat

TOWER = Tower(
    depth=1,
    hidden=2,
    intermediate=3,
    output=4,
    side=2,
    patches_per_token=2,
    values_per_patch=13,
    num_features=1,
    is_gated=False,
)
TINY = Shapes(
    parameters=0,
    layers=5,
    hidden=2,
    intermediate=0,
    query=7,
    key=0,
    num_heads=1,
    vocabulary=11,
    has_head_norms=False,
    is_tied=True,
    linears={f"layers.{i}.only": (3, 2) for i in range(5)},
    largest=0,
    tower=TOWER,
)


def test_text_by_hand() -> None:
    """L = 4, T = 1 and 3: R = 6, A = 10 + 2 * 4 + 3 = 21."""
    group = Group(4, (), np.array([1, 3]))
    forward = 5 * (2 * 6 * 6 + 4 * 7 * 21) + 2 * 22 * 4
    assert least_flops(TINY, [group]) == 3 * forward
    assert least_flops(TINY, [group, group], num_scorings=1) == 2 * 4 * forward


def test_pixels_by_hand() -> None:
    """Two frames of 4 patches: the embedding has no gradient of its input."""
    vision, text = (Group(4, frames, np.array([1])) for frames in ((4, 4), ()))
    tower = 2 * (4 * 4 + 2 * 2 * 3) * 8 + 4 * 2 * 32 + 2 * (4 * (4 + 4)) * 4
    embedding = 2 * 26 * 8
    assert least_flops(TINY, [vision]) - least_flops(TINY, [text]) == 3 * tower + 2 * embedding


@pytest.mark.parametrize("name", ["text", "image64", "video32"])
def test_the_formula_agrees_with_torch_where_both_count_alike(name: str, miniature: Path) -> None:
    """Completions of one token: there is only the prompt's pass.

    Torch counts causal attention as if it were full, and its backward as 5 matmuls instead of 4.
    """
    case = replace(CASES[name], num_prompts=1, group_size=1, lengths=(1, 1))
    policy = Policy.load(miniature)
    prompt = policy.render(Problems("shapes", case.media).problem("train", 0).messages)
    with flop_counter() as counter:
        states = policy.score([prompt], *flat([[np.array([9], dtype=np.int32)]]))
        (states.hidden @ policy.head.T).sum().backward()
    shapes = read_shapes(miniature)
    assert shapes.tower is not None
    [group] = groups_of(case, 0, miniature)
    length, frames = group.prompt, sum(n * n for n in group.frames)
    full = 4 * shapes.layers * shapes.query * length * length
    seen = 4 * shapes.tower.depth * shapes.tower.hidden * frames
    causal = 4 * shapes.layers * shapes.query * length * (length + 1) // 2
    counted = counter.get_total_flops() - 3.5 * (full + seen)
    least = least_flops(shapes, [group]) - 3 * (causal + seen)
    assert counted == pytest.approx(least, rel=2e-3)


def test_a_mutual_step_scores_its_second_half(miniature: Path) -> None:
    mutual, single = CASES["mutual"], CASES["text"]
    plain = least_of_step(single, 0, miniature)
    assert least_of_step(mutual, 0, miniature) == plain + plain * 4 // 3
    assert least_of_step(CASES["distill8"], 0, miniature) == plain * 4 // 3


def test_matmul_side_counts_three_matmuls_per_matrix(miniature: Path) -> None:
    case = CASES["text"]
    parent, child = Pipe()
    parent.send({"step": 0, "count_flops": True})
    parent.send(None)
    take_turns(case, miniature, Turns(child))
    parent.recv()
    answer = parent.recv()
    weights = 128 * (128 + 64 + 64 + 128 + 3 * 384)
    assert answer["flops"] == 4 * 3 * 2 * weights * 16 * (27 + 8 * 23)


def test_miniature_is_the_one_that_was_promised(miniature: Path) -> None:
    model = Policy.load(miniature).model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.09e6, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}

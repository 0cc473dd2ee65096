"""The least work: by hand, and against torch's counter on the real model."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from benchmarks.cases import CASES, Shapes
from benchmarks.floor import Group, groups_of, least_flops, least_of_step, take_turns
from benchmarks.turns import Turns, flop_counter
from copd.planning.cluster import Widths
from copd.policy import Policy

TINY = Widths(
    text={"only": (2, 3)},
    num_layers=5,
    attention=7,
    head=(2, 11),
    patch=(13, 2),
    block={"proj": (2, 2)},
    num_blocks=1,
    merger={"fc": (4, 2)},
    num_mergers=1,
    patches_per_token=2,
)


def test_text_by_hand() -> None:
    """L = 4, T = 1 and 3: R = 6, A = 10 + 2 * 4 + 3 = 21."""
    group = Group(4, (), np.array([1, 3]))
    forward = 5 * (2 * 6 * 6 + 4 * 7 * 21) + 2 * 22 * 4
    assert least_flops(TINY, [group]) == 3 * forward
    assert least_flops(TINY, [group, group], num_askings=1) == 2 * 4 * forward


def test_pixels_by_hand() -> None:
    """Two frames of 4 patches: the embedding has no gradient of its input."""
    seeing, blind = (Group(4, frames, np.array([1])) for frames in ((4, 4), ()))
    vision = 2 * 4 * 8 + 4 * 2 * 32 + 2 * 8 * 4
    embedding = 2 * 26 * 8
    assert least_flops(TINY, [seeing]) - least_flops(TINY, [blind]) == 3 * vision + 2 * embedding


@pytest.mark.parametrize("name", ["text", "image64", "video32"])
def test_the_formula_agrees_with_torch_where_both_count_alike(name: str, miniature: Path) -> None:
    """Completions of one token: there is only the prompt's pass.

    Torch counts causal attention as if it were full, and its backward as 5 matmuls instead of 4.
    """
    case = replace(CASES[name], num_prompts=1, group_size=1, lengths=(1, 1))
    policy = Policy.load(miniature)
    prompt = policy.render(Shapes("shapes", case.media).problem("train", 0).messages)
    with flop_counter() as counter:
        states = policy.score([prompt], [[np.array([9], dtype=np.int32)]])
        (states.hidden @ policy.head.T).sum().backward()
    widths = Widths.read(AutoConfig.from_pretrained(miniature).to_dict())
    [group] = groups_of(case, 0, miniature)
    length, frames = group.prompt, sum(n * n for n in group.frames)
    full = 4 * widths.num_layers * widths.attention * length * length
    seen = 4 * widths.num_blocks * widths.block["proj"][0] * frames
    causal = 4 * widths.num_layers * widths.attention * length * (length + 1) // 2
    counted = counter.get_total_flops() - 3.5 * (full + seen)
    least = least_flops(widths, [group]) - 3 * (causal + seen)
    assert counted == pytest.approx(least, rel=2e-3)


def test_a_mutual_step_asks_about_its_second_half(miniature: Path) -> None:
    mutual, single = CASES["mutual"], CASES["text"]
    plain = least_of_step(single, 0, miniature)
    assert least_of_step(mutual, 0, miniature) == plain + plain * 4 // 3
    assert least_of_step(CASES["distill8"], 0, miniature) == plain * 4 // 3


def test_matmul_side_counts_three_matmuls_per_matrix(miniature: Path) -> None:
    case = CASES["text"]
    words = [{"step": 0, "count_flops": True}, {"stop": True}]
    heard, said = io.StringIO("\n".join(map(json.dumps, words))), io.StringIO()
    take_turns(case, miniature, Turns(heard, said))
    answer = json.loads(said.getvalue().splitlines()[-1])
    weights = 128 * (128 + 64 + 64 + 128 + 3 * 384)
    assert answer["flops"] == 4 * 3 * 2 * weights * 16 * (27 + 8 * 23)


def test_miniature_is_the_one_that_was_promised(miniature: Path) -> None:
    model = Policy.load(miniature).model
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1.09e6, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}

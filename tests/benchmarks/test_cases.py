"""What is measured: every step has new problems and new lengths, the same for both sides."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.cases import CASES, Case, Shapes, digit_share, planned_lengths
from benchmarks.floor import groups_of


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_plan_has_a_length_for_every_completion_and_is_always_the_same(case: Case) -> None:
    lengths = planned_lengths(case, 3)
    assert lengths.shape == (case.num_prompts * case.group_size,)
    assert lengths.min() >= case.lengths[0] and lengths.max() <= case.lengths[1]
    np.testing.assert_array_equal(lengths, planned_lengths(case, 3))


def test_ragged_lengths_differ_between_steps_and_have_a_mean_of_24() -> None:
    plans = np.stack([planned_lengths(CASES["ragged"], step) for step in range(50)])
    assert (plans[0] != plans[1]).any()
    assert plans.min() == 4 and plans.max() == 96
    assert 23 < plans.mean() < 24.5


@pytest.mark.parametrize(
    ("name", "tokens", "frames"),
    [
        ("text", 27, ()),
        ("image64", 27 + 16 + 2, (64,)),
        ("image256", 27 + 256 + 2, (1024,)),
        ("video32", 27 + 2 + 4 * (4 + 2 + 13), (16,) * 4),
        ("video128", 27 + 2 + 4 * (64 + 2 + 13), (256,) * 4),
    ],
)
def test_prompts_have_the_length_the_case_is_named_after(
    name: str, tokens: int, frames: tuple[int, ...], miniature: Path
) -> None:
    groups = groups_of(CASES[name], 0, miniature)
    assert len(groups) == 16
    assert {group.prompt for group in groups} == {tokens}
    assert {group.frames for group in groups} == {frames}


def test_a_problem_is_rebuilt_alike_and_no_two_are_the_same() -> None:
    domain = Shapes("shapes", (64, 64))
    first, again, other = (domain.problem("train", index).messages[0] for index in (0, 0, 1))
    assert first == again
    assert (first.content[0].pixels != other.content[0].pixels).any()  # pyright: ignore
    assert first.content[1] != other.content[1]


def test_reward_is_the_share_of_digits() -> None:
    assert digit_share("1a2b") == 0.5
    assert digit_share("") == 0.0

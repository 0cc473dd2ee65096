"""A plan is checked when it is made, and answers where a step is and who takes part."""

import json
import math

import pytest

from copd.config import NoMerge, UniformMerge
from copd.recipes import OPD, RLVR, Merge, Plan, Stage, to_dict

A, B = RLVR("a", "x"), RLVR("b", "y")
MUTUAL = Stage("mutual", 2, (A, B, OPD("a", "b", "y"), OPD("b", "a", "x", beta=0.5)))
PLAN = Plan(("a", "b"), (Stage("rlvr", 3, (A, B)), MUTUAL), Merge("c", ("a", "b"), UniformMerge()))


def test_keys_name_an_action_within_its_branch():
    assert RLVR("text", "math").key == "rlvr/math"
    assert OPD("text", teacher="image", domain="photos").key == "opd/from_image/photos"


def test_every_step_has_one_place():
    assert PLAN.total_steps == 5
    assert [PLAN.locate(step) for step in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_plan_is_refused(step: int):
    with pytest.raises(ValueError, match="Compare with total_steps"):
        PLAN.locate(step)


def test_a_stage_knows_who_is_trained_and_by_whom():
    stage = Stage("opd", 1, (OPD("s", "a", "x"), OPD("s", "b", "y"), OPD("s", "a", "z"), A))
    assert stage.trained == ("s", "a")
    assert stage.neighbours("s") == ("a", "b")
    assert stage.neighbours("a") == ()
    assert stage.actions_of("a") == (A,)


def test_the_plan_is_plain_values_in_json():
    plan = Plan(("a", "b"), (MUTUAL,), Merge("c", ("a", "b"), UniformMerge()))
    assert json.loads(json.dumps(to_dict(plan))) == {
        "branches": ["a", "b"],
        "stages": [
            {
                "name": "mutual",
                "steps": 2,
                "actions": [
                    {"key": "rlvr/x", "branch": "a", "domain": "x"},
                    {"key": "rlvr/y", "branch": "b", "domain": "y"},
                    {
                        "key": "opd/from_b/y",
                        "branch": "a",
                        "teacher": "b",
                        "domain": "y",
                        "beta": 1.0,
                    },
                    {
                        "key": "opd/from_a/x",
                        "branch": "b",
                        "teacher": "a",
                        "domain": "x",
                        "beta": 0.5,
                    },
                ],
            }
        ],
        "merge": {"into": "c", "branches": ["a", "b"], "method": {"type": "uniform"}},
        "result": None,
    }


def test_nobody_is_their_own_teacher():
    with pytest.raises(ValueError, match=r"got 'a' twice\. Name another branch"):
        OPD("a", teacher="a", domain="x")


@pytest.mark.parametrize("beta", [0.0, -1.0, math.inf, math.nan])
def test_beta_of_an_action_is_positive_and_finite(beta: float):
    with pytest.raises(ValueError, match="Leave the action out"):
        OPD("a", "b", "x", beta=beta)


@pytest.mark.parametrize(("steps", "actions"), [(0, (A,)), (3, ())])
def test_an_empty_stage_is_refused(steps: int, actions: tuple[RLVR, ...]):
    with pytest.raises(ValueError, match="Leave the stage out"):
        Stage("rlvr", steps, actions)


@pytest.mark.parametrize(
    "repeated", [(A, B, A), (A, B, OPD("a", "b", "y"), OPD("a", "b", "y", beta=0.5))]
)
def test_an_action_occurs_once_in_a_stage(repeated: tuple[RLVR | OPD, ...]):
    with pytest.raises(ValueError, match=r"Remove one; a larger batch is rollout\.num_prompts"):
        Stage("mutual", 1, repeated)


def test_two_branches_may_share_a_key():
    assert Stage("rlvr", 1, (RLVR("a", "x"), RLVR("b", "x"))).trained == ("a", "b")


RLVR_STAGE = (Stage("rlvr", 1, (A, B)),)


@pytest.mark.parametrize(
    ("branches", "stages", "remedy"),
    [
        (("a", "b"), (), "Add a Stage"),
        (("a", "b", "a"), RLVR_STAGE, "Rename one"),
        (("a",), RLVR_STAGE, "got 'b', known are a. Add it to branches"),
        (("a",), (Stage("opd", 1, (OPD("a", "c", "x"),)),), "got 'c'.* Add it to branches"),
        (("a", "b", "c", "d"), RLVR_STAGE, r"\['c', 'd'\].* Remove them from branches"),
    ],
)
def test_a_plan_is_consistent(branches: tuple[str, ...], stages: tuple[Stage, ...], remedy: str):
    with pytest.raises(ValueError, match=remedy):
        Plan(branches, stages)


@pytest.mark.parametrize(
    ("merge", "result", "remedy"),
    [
        (Merge("c", ("a", "b"), UniformMerge()), "a", "Remove one"),
        (Merge("c", ("a", "z"), UniformMerge()), None, "got 'z'.* Add it to branches"),
        (Merge("c", ("a",), UniformMerge()), None, "Use result"),
        (Merge("c", ("a", "b", "a"), UniformMerge()), None, "Use result"),
        (Merge("b", ("a", "b"), UniformMerge()), None, "Choose another name in into"),
        (None, "z", "got 'z'.* Add it to branches"),
    ],
)
def test_what_a_plan_ends_with_is_consistent(merge: Merge | None, result: str | None, remedy: str):
    with pytest.raises(ValueError, match=remedy):
        Plan(("a", "b"), RLVR_STAGE, merge, result)


def test_an_untrained_branch_may_teach_or_be_merged():
    taught = Plan(("a", "t"), (Stage("opd", 1, (OPD("a", "t", "x"),)),), result="a")
    merged = Plan(("a", "t"), (Stage("rlvr", 1, (A,)),), Merge("c", ("a", "t"), NoMerge()))
    assert taught.final == "a"
    assert merged.final == "c"

"""Costs against numbers worked out by hand."""

from dataclasses import replace

import pytest

from copd.config import BandConfig, Config, UniformMerge, parse_config
from copd.planning import Expected, memory_report
from copd.planning.cost import BranchCost, PlanCost, describe, plan_cost
from copd.planning.workload import find_workloads
from copd.recipes import OPD, RLVR, Merge, Plan, Stage, to_dict


def run(*domains: str, **rollout: int) -> Config:
    return parse_config(
        {
            "output_dir": "none",
            "model": {"path": "tiny"},
            "domains": {name: {"type": "digits", "modality": "text"} for name in domains},
            "recipe": {"type": "mixed", "steps": 1},
            "rollout": rollout,
        }
    )


RUN = run("x", "y", "z", num_prompts=5, group_size=4, max_completion_tokens=10)


def expect(tokens: int | None = None, **domains: float) -> PlanCost:
    means = {f"{name}.mean": value for name, value in domains.items()}
    expected = Expected(completion_tokens=tokens, domains=means)
    return plan_cost(HUB, RUN, find_workloads(RUN, None, expected))


A, B = RLVR("a", "x"), RLVR("b", "y")
HUB = Plan(
    ("a", "b", "c"),
    (
        Stage("rlvr", 3, (A, B)),
        Stage("mutual", 2, (A, B, OPD("a", "b", "y"), OPD("a", "c", "z"), OPD("b", "a", "x"))),
    ),
    Merge("unified", ("a", "b", "c"), UniformMerge()),
)


def test_cost_of_a_small_plan():
    # One batch is 5 prompts, 20 completions, 200 tokens.
    # a: 3 batches, then 2 steps of 3; b scores 2 of them, c 2. b: 3, then 2 of 2; a scores 2.
    cost = plan_cost(HUB, RUN)
    assert cost.branches == {
        "a": BranchCost(5, 45, 180, 1800, 1800, 400),
        "b": BranchCost(5, 35, 140, 1400, 1400, 400),
        "c": BranchCost(0, 0, 0, 0, 0, 400),
    }
    assert cost.total == BranchCost(10, 80, 320, 3200, 3200, 1200)
    assert (cost.completion_tokens, cost.is_upper_bound) == (10, True)


def test_an_expected_length_scales_tokens_and_nothing_else():
    cost = expect(3)
    assert cost.branches["a"] == BranchCost(5, 45, 180, 540, 540, 120)
    assert not cost.is_upper_bound


def test_domains_may_have_lengths_of_their_own():
    # a: 5 batches of x, 2 each of y and z; b: 5 of y, 2 of x
    cost = expect(10, x=4, z=1)
    assert cost.branches["a"].sampled_tokens == 20 * (5 * 4 + 2 * 10 + 2 * 1)
    assert cost.branches["b"].sampled_tokens == 20 * (5 * 10 + 2 * 4)
    assert cost.branches["c"].scored_tokens == 20 * 2
    assert cost.completion_tokens == cost.total.sampled_tokens // 320
    assert not cost.is_upper_bound


@pytest.mark.parametrize("tokens", [0, 11])
def test_an_expected_length_is_within_the_limit(tokens: int):
    with pytest.raises(ValueError, match="Pass the mean length you expect"):
        memory_report(RUN, HUB, expected=Expected(completion_tokens=tokens))


def test_scored_tokens_are_the_sampled_tokens_of_cross_batches():
    plan = Plan(("a", "b"), (Stage("opd", 4, (OPD("a", "b", "y"),)),))
    total = plan_cost(plan, RUN).total
    assert total.scored_tokens == total.sampled_tokens == 4 * 200


def test_plain_values_add_the_total():
    values = plan_cost(HUB, RUN).to_dict()
    assert values["total"]["steps"] == 10
    assert values["branches"]["c"]["scored_tokens"] == 400


def test_the_description_shows_who_learns_from_whom():
    text = describe(HUB, plan_cost(HUB, RUN))
    assert text.splitlines() == [
        "Branches: a, b, c",
        "Result:   unified, the uniform merge of a, b, c",
        "",
        "  rlvr, 3 steps",
        "    a  learns from rewards on x",
        "    b  learns from rewards on y",
        "  mutual, 2 steps",
        "    a  learns from rewards on x; from b on y; from c on z",
        "    b  learns from rewards on y; from a on x",
        "    frozen teachers: c",
        "",
        "branch  steps  prompts  completions  sampled  trained  scored",
        "a           5       45          180    1,800    1,800     400",
        "b           5       35          140    1,400    1,400     400",
        "c           0        0            0        0        0     400",
        "total      10       80          320    3,200    3,200   1,200",
        "",
        "Steps are branch steps: one optimizer update of one branch.",
        "Sampled, trained and (as a teacher) scored are tokens of completions; prompts and media",
        "come on top. Upper bounds, with the limit of 10 tokens for every completion.",
    ]


def test_repeated_stages_are_shown_once_with_their_number_of_rounds():
    stages = (Stage("rlvr", 3, (A, B)), Stage("mutual", 2, (A, B, OPD("a", "b", "y", beta=0.5))))
    plan = Plan(("a", "b"), stages * 12, result="a")
    text = describe(plan, plan_cost(plan, RUN))
    assert "12 rounds of\n  rlvr, 3 steps\n" in text
    assert text.count("mutual") == 1
    assert "from b on y (beta 0.5)" in text
    assert "Result:   a\n" in text


def test_a_temperature_of_its_own_is_said():
    plan = Plan(("a",), (Stage("rlvr", 3, (replace(A, temperature=0.7),)),), result="a")
    assert "from rewards on x at temperature 0.7" in describe(plan, plan_cost(plan, RUN))


def test_a_band_is_said_and_its_teachers_counted_in_every_step():
    free = Stage("mutual", 4, (A, B, OPD("a", "b", "y")))
    plan = Plan(("a", "b"), (replace(free, band=BandConfig(low=0.8, high=0.9)),))
    cost = plan_cost(plan, RUN)
    assert cost == plan_cost(Plan(("a", "b"), (free,)), RUN)
    said = "teachers from overlap 0.8 until 0.9; counted in every step"
    assert said in describe(plan, cost)
    assert said not in describe(Plan(("a", "b"), (free,)), cost)


def test_stale_teachers_are_said():
    free = Stage("mutual", 4, (A, B, OPD("a", "b", "y")))
    stale = Plan(("a", "b"), (replace(free, max_staleness=2),))
    assert "teachers up to 2 steps old" in describe(stale, plan_cost(stale, RUN))
    assert to_dict(stale)["stages"][0]["max_staleness"] == 2
    assert "max_staleness" not in to_dict(Plan(("a", "b"), (free,)))["stages"][0]


def test_stages_that_do_not_repeat_are_all_shown():
    rlvr, more = Stage("rlvr", 3, (A, B)), Stage("rlvr", 4, (A, B))
    plan = Plan(("a", "b"), (rlvr, more, rlvr))
    assert describe(plan, plan_cost(plan, RUN)).count("rlvr, ") == 3


def test_the_description_of_a_paper_sized_run_fits_100_columns():
    names = [f"domain-{i}" for i in range(6)]
    cross = [OPD(s, t, t) for s in names for t in names if s != t]
    stages = (Stage("mutual", 1000, (*(RLVR(n, n) for n in names), *cross)),)
    plan = Plan(tuple(names), stages)
    lines = describe(plan, plan_cost(plan, run(*names))).splitlines()
    assert max(map(len, lines)) <= 100
    assert "Upper bounds, with the limit of 16,384 tokens" in lines[-1]

"""The live view at several widths, line by line, and its times against hand-computed ones."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from copd.monitor.glyphs import UNICODE, bounds, clock, columns, count_text, seconds_text, signed
from copd.monitor.history import History, latest, rates, remaining, zero_variance_warnings
from copd.monitor.view import Phase, RunView
from copd.recipes import OPD, RLVR, Plan, Stage

NATIVE = (RLVR("text", "text"), RLVR("image", "image"))
CROSS = (OPD("text", "image", "image"), OPD("image", "text", "text"))


def two_branches(rounds: int = 2) -> Plan:
    """Return rounds of three steps without and two with teachers."""
    stages = (Stage("rlvr", 3, NATIVE), Stage("mutual", 2, NATIVE + CROSS))
    return Plan(("text", "image"), stages * rounds)


def line(plan: Plan, step: int, *, accuracy: float = 0.5, reward: float | None = None) -> dict:
    """Return a line of metrics.jsonl in which overlaps fall by 0.01 each step."""
    index, _ = plan.locate(step - 1)
    branches: dict[str, dict[str, float]] = {name: {} for name in plan.branches}
    for action in plan.stages[index].actions:
        values = {"accuracy": accuracy, "entropy": 0.25, "length": 12.0, "loss": 1.0}
        values["reward"] = accuracy if reward is None else reward
        if isinstance(action, OPD):
            values["overlap"] = 1.0 - 0.01 * step
        branches[action.branch] |= {f"{action.key}/{k}": v for k, v in values.items()}
    counts = {"steps": step, "sampled_tokens": 9_000 * step, "scored_tokens": 100 * step}
    cost = dict.fromkeys(plan.branches, counts)
    return {"step": step, "stage": plan.stages[index].name, "branches": branches, "cost": cost}


def history(plan: Plan, done: int, **values: float) -> History:
    """Accuracy rises by 5 points a step; a step takes 1 second, with teachers 4."""
    made = History(plan)
    lines = [line(plan, s, **{"accuracy": 0.05 * s} | values) for s in range(1, done + 1)]
    seconds = {"rlvr": 1.0, "mutual": 4.0}
    made.read(
        lines, [{"step": one["step"], "seconds": seconds.get(one["stage"], 1.0)} for one in lines]
    )
    return made


READABLE = str.maketrans(
    UNICODE.levels + "".join(UNICODE.done + UNICODE.ahead) + UNICODE.arrow + UNICODE.cut,
    "12345678=6-:<~",
)
"""Sparklines and the strip as ASCII; 6 is a step with teachers."""


def shown(view: RunView, width: int, height: int = 40, **console: str) -> list[str]:
    """Return the lines that a console prints."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=console.get("encoding", "utf-8"))
    Console(file=file, width=width, height=height, color_system=None).print(view)
    file.seek(0)
    return file.read().translate(READABLE).splitlines()


AT_100 = """\
 runs/pair                                                                            8 of 10 steps
 now           mutual   round 2 of 2   step 1 of 2
 stages        ================6666666666===============::::::::::    80 %

 accuracy      5 to 40 %                                            latest  change  entropy  length
 text          11111122222333334444455555666667777788888              32 %     +20     0.25    12.0
 image         11111122222333334444455555666667777788888              32 %     +20     0.25    12.0

 overlap@10    0.93 to 0.98
 text < image                  5555544444                            0.950  -0.010
 image < text                  5555544444                            0.950  -0.010

 time          0:15 elapsed   0:07 left
 per step      rlvr 1.0 s   mutual 4.0 s
 cost          144.0 k tokens sampled   1600 scored   16 updates"""

AT_60 = """\
 runs/pair                                    8 of 10 steps
 now           mutual   round 2 of 2   step 1 of 2
 stages        ======6666======:::    80 %

 accuracy      5 to 40 %            latest  change  entropy
 text          1122334455667788       32 %     +20     0.25
 image         1122334455667788       32 %     +20     0.25

 overlap@10    0.93 to 0.98
 text < image        5544            0.950  -0.010
 image < text        5544            0.950  -0.010

 time          0:15 elapsed   0:07 left
 per step      rlvr 1.0 s   mutual 4.0 s
 cost          144.0 k tokens sampled   1600 scored"""

AT_40 = """\
 runs/pair                8 of 10 steps
 now         mutual   round 2 of 2   s~
 stages      ======666======:::    80 %

 accuracy    5 to 40 %           latest
 text        112233445667788       32 %
 image       112233445667788       32 %

 overlap@10  0.93 to 0.98
 text < im~        554            0.950
 image < t~        554            0.950

 time        0:15 elapsed   0:07 left
 per step    rlvr 1.0 s   mutual 4.0 s
 cost        144.0 k tokens sampled"""


@pytest.mark.parametrize(("width", "frame"), [(100, AT_100), (60, AT_60), (40, AT_40)])
def test_a_run_is_drawn_from_its_metrics(width, frame):
    """2 x 3 steps of 1 s and 2 of 4 s are 14 s; the next has taken 1 s: 2 x 4 s - 1 s are left."""
    assert shown(RunView("runs/pair", history(two_branches(), 8), 10, 1.0), width) == (
        frame.splitlines()
    )


def test_eighty_columns_show_all_numbers():
    lines = shown(RunView("runs/pair", history(two_branches(), 8), 10, 1.0), 80)
    assert lines[2:6] == [
        " stages        ==========666666=========::::::    80 %",
        "",
        " accuracy      5 to 40 %                        latest  change  entropy  length",
        " text          1111222333444555666777888          32 %     +20     0.25    12.0",
    ]


def test_without_unicode_everything_is_ascii():
    lines = shown(RunView("runs/pair", history(two_branches(), 8), 10), 80, encoding="ascii")
    assert lines[2] == " stages         =========######=========::::::    80 %"
    assert lines[5].startswith(" text           ___...---~~~===+++***###  ")
    assert lines[9].startswith(" text <- image           ===~~~  ")


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
@pytest.mark.parametrize("done", [0, 1, 4, 10])
def test_no_line_is_wider_than_the_console(width, done):
    view = RunView("runs/" + "long" * 60, history(two_branches(), done), 10)
    lines = shown(view, width)
    assert max(map(len, lines)) <= width
    assert len(lines) == 15  # none was wrapped


def test_before_the_first_step_all_rows_are_there():
    """Nothing moves when numbers appear."""
    start, end = (shown(RunView("r", history(two_branches(), done), 10), 80) for done in (0, 10))
    assert [line[:14].rstrip() for line in start] == [line[:14].rstrip() for line in end]
    assert start[1] == " now           rlvr   round 1 of 2   step 1 of 3"
    assert start[4].split() == ["accuracy", "latest", "change", "entropy", "length"]
    assert end[1] == " now           trained"
    assert end[2].endswith(" 100 %")
    assert not any("left" in line for line in end)


def test_an_evaluation_shows_how_far_it_is():
    phase = Phase("evaluating the base", 1, 3, seconds=65.2)
    lines = shown(RunView("r", history(two_branches(), 0), 10, phase=phase), 80)
    assert lines[1] == " now           evaluating the base   ====-------- 1 of 3   1:05"


def test_a_low_console_loses_blank_lines_then_pairs():
    names = ("a", "b", "c", "d")
    native = tuple(RLVR(name, name) for name in names)
    pairs = tuple(OPD(s, t, t) for s in names for t in names if s != t)
    plan = Plan(names, (Stage("mutual", 4, native + pairs),))
    view = RunView("r", history(plan, 4), 10)
    assert len(shown(view, 80, 40)) == 3 + 1 + 5 + 1 + 13 + 1 + 3
    low = shown(view, 80, 20)
    assert "" not in low
    assert [one.split("  ")[0] for one in low[8:15]] == [
        *(" overlap@10", " a < b", " a < c", " a < d", " b < a", " b < c", " b < d"),
    ]
    assert low[15].strip() == "6 more pairs, lowest 0.965"  # the mean of steps 3 and 4
    assert low[-1].startswith(" cost")
    assert len(low) == 19


def test_a_branch_without_a_native_batch_shows_its_cross_batches():
    cross = (OPD("student", "a", "x"), OPD("student", "a", "y"))
    plan = Plan(("student", "a"), (Stage("experts", 2, (RLVR("a", "x"),)), Stage("opd", 2, cross)))
    lines = shown(RunView("r", history(plan, 3), 10), 80)
    assert [one.split("  ")[0] for one in lines[5:8]] == [" student < a x", " student < a y", " a"]
    assert lines[1] == " now            opd   step 2 of 2"


def test_graded_rewards_are_shown_instead_of_accuracy():
    lines = shown(RunView("r", history(two_branches(), 4, reward=0.75), 10), 80)
    assert lines[4].startswith(" reward        0.65 to 0.85 ")
    assert lines[5].split()[-4:] == ["0.75", "0", "0.25", "12.0"]


def test_latest_is_a_mean_of_five_steps_against_the_first_five():
    values = np.array([np.nan, *range(12), np.nan])
    now = latest(values)
    assert now is not None
    assert (now.value, now.change) == (9.0, 7.0)  # 7 to 11 against 0 to 4
    assert latest(values[:1]) is None
    alone = latest(values[:2])
    assert alone is not None and alone.change is None


def test_zero_variance_groups_in_all_steps_are_a_warning_with_the_mean_reward():
    plan = two_branches()
    lines = [line(plan, step, accuracy=0.25) for step in (1, 2, 3)]
    for one, share in zip(lines, (1.0, 0.875, 1.0), strict=True):
        one["branches"]["text"]["rlvr/text/frac_reward_zero_std"] = share
        one["branches"]["image"]["rlvr/image/frac_reward_zero_std"] = 1.0
    made = History(plan)
    assert zero_variance_warnings(made) == []
    made.read(lines, [])
    [warning] = zero_variance_warnings(made)
    assert warning.startswith("image learned nothing from rewards on image: at every step (3) ")
    assert "0.25 on average" in warning and "frac_reward_zero_std" in warning


def test_a_chart_has_means_over_equal_shares_of_the_plan():
    values = np.array([1.0, 3.0, np.nan, np.nan, 5.0, np.nan])
    assert columns(values, 3).tolist() == pytest.approx([2.0, np.nan, 5.0], nan_ok=True)
    assert columns(np.array([1.0, 2.0]), 5).tolist() == [1, 1, 1, 2, 2]
    assert bounds([np.array([0.5, np.nan]), np.array([0.5])], 0.2) == pytest.approx((0.4, 0.6))
    assert bounds([np.array([0.0])], 0.2) == (0.0, 0.2)


def test_each_kind_of_stage_has_its_own_rate():
    made = history(two_branches(), 5)
    assert rates(made) == {"rlvr": 1.0, "mutual": 4.0}
    assert remaining(made) == 3 * 1.0 + 2 * 4.0


def test_a_kind_that_has_not_begun_is_estimated_from_its_batches():
    """1 s for 2 batches: a mutual step with 4 takes 2 s."""
    assert remaining(history(two_branches(), 1)) == 5 * 1.0 + 4 * 2.0
    assert remaining(history(two_branches(), 0)) is None


def test_evaluations_are_separated_from_steps():
    """Every second step but the last includes 10 s of evaluation."""
    plan = Plan(("a",), (Stage("rlvr", 10, (RLVR("a", "a"),)),))
    made = History(plan, evaluation_every=2)
    for step in range(1, 5):
        made.add(line(plan, step), 1.0 if step % 2 else 11.0)
    assert rates(made) == {"rlvr": 1.0}
    assert remaining(made) == 6 * 1.0 + 2 * 10.0  # after steps 6 and 8


def test_numbers_as_text():
    assert [clock(s) for s in (5.9, 65, 7265)] == ["0:05", "1:05", "2:01:05"]
    counts = [count_text(n) for n in (9_999, 10_000, 1_250_000, 3 * 10**9)]
    assert counts == ["9999", "10.0 k", "1.2 M", "3.0 G"]
    assert [seconds_text(s) for s in (0.314, 2.44, 31.2)] == ["0.31 s", "2.4 s", "31 s"]
    assert [signed(v, 2).plain for v in (0.004, -0.004, 0.1, -0.1)] == ["0", "0", "+0.10", "-0.10"]

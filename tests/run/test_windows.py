"""Where all branches must be at the same step."""

from copd.config import Config
from copd.recipes import build_plan
from copd.run.windows import windows

SETTINGS = {
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in ("text", "image")},
    "recipe": {"type": "copd", "rounds": 3, "rlvr_steps": 2, "opd_steps": 2},
}


def steps_of_windows(done: int = 0, **sections: object) -> list[list[int]]:
    config = Config.model_validate({**SETTINGS, **sections})
    return [list(window) for window in windows(config, build_plan(config), done)]


def test_a_window_ends_at_a_checkpoint_an_evaluation_or_dynamics_and_nowhere_else():
    assert steps_of_windows() == [[*range(1, 11)], [11, 12]]  # checkpoint.every is 10
    assert steps_of_windows(checkpoint={"every": 99}) == [[*range(1, 13)]]
    several = {"checkpoint": {"every": 5, "milestones": [6]}, "evaluation": {"every": 9}}
    assert steps_of_windows(**several) == [[1, 2, 3, 4, 5], [6], [7, 8, 9], [10], [11, 12]]
    every_4 = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [11, 12]]
    assert steps_of_windows(monitor={"every": 4}) == every_4


def test_a_resumed_run_has_the_rest_of_its_window():
    assert steps_of_windows(done=3) == [[4, 5, 6, 7, 8, 9, 10], [11, 12]]
    assert steps_of_windows(done=10) == [[11, 12]]
    assert steps_of_windows(done=12) == []


def test_no_branch_is_ahead_where_a_token_budget_ends_a_run():
    assert steps_of_windows(max_tokens=1000) == [[step] for step in range(1, 13)]

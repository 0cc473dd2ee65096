"""Where branches must be of the same step."""

from copd.config import Config
from copd.recipes import build_plan
from copd.run.windows import windows

SETTINGS = {
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in ("text", "image")},
    "recipe": {"type": "copd", "rounds": 3, "rlvr_steps": 2, "opd_steps": 2},
}


def found(done: int = 0, **sections: object) -> list[list[int]]:
    config = Config.model_validate({**SETTINGS, **sections})
    return [list(window) for window in windows(config, build_plan(config), done)]


def test_a_window_ends_where_branches_are_saved_evaluated_or_compared_and_nowhere_else():
    assert found() == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 12]]  # checkpoint.every is 10
    assert found(checkpoint={"every": 99}) == [[*range(1, 13)]]
    several = {"checkpoint": {"every": 5, "milestones": [6]}, "evaluation": {"every": 9}}
    assert found(**several) == [[1, 2, 3, 4, 5], [6], [7, 8, 9], [10], [11, 12]]
    assert found(monitor={"every": 4}) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], [11, 12]]


def test_a_resumed_run_has_the_rest_of_its_window():
    assert found(done=3) == [[4, 5, 6, 7, 8, 9, 10], [11, 12]]
    assert found(done=10) == [[11, 12]]
    assert found(done=12) == []


def test_nobody_is_ahead_where_tokens_end_a_run():
    assert found(max_tokens=1000) == [[step] for step in range(1, 13)]

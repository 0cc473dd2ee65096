"""Runs that lose branches: how often they start again, and what they report."""

from collections.abc import Iterable

import pytest

from copd.engine import BranchLost
from copd.run.recovery import retry_lost_branches


class LosingRun:
    """A run that loses a branch once per number of steps saved by then."""

    def __init__(self, saved_steps: Iterable[int]) -> None:
        self.saved_steps = list(saved_steps)
        self.step = 0
        self.calls: list[str] = []
        self.messages: list[str] = []

    def work(self) -> str:
        self.calls.append("work")
        if not self.saved_steps:
            return "done"
        self.step = self.saved_steps.pop(0)
        raise BranchLost("gone.")

    def run(self, max_failures: int) -> str:
        return retry_lost_branches(
            self.work,
            restart=lambda: self.calls.append("restart"),
            progress=lambda: self.step,
            max_failures=max_failures,
            report=self.messages.append,
        )


@pytest.mark.parametrize(
    ("max_failures", "saved_steps", "attempts"),
    [
        (3, [0, 0, 0], [1, 2, 3]),
        (3, [0, 0, 1, 1, 1, 2], [1, 2, 1, 2, 3, 1]),
        (1, [1, 2, 3], [1, 1, 1]),
        (0, [], []),
    ],
)
def test_a_new_checkpoint_resets_the_count_of_losses(max_failures, saved_steps, attempts):
    run = LosingRun(saved_steps)
    assert run.run(max_failures) == "done"
    assert run.calls == ["work"] + ["restart", "work"] * len(attempts)
    assert run.messages == [
        f"gone. Beginning again after step {step}, attempt {n} of {max_failures}."
        for step, n in zip(saved_steps, attempts, strict=True)
    ]


@pytest.mark.parametrize(
    ("max_failures", "saved_steps", "num_attempts"),
    [(3, [0] * 9, 4), (3, [0, 0, 5, *[5] * 9], 6), (0, [7], 1), (1, [1, 1], 2)],
)
def test_a_run_gives_up_after_losses_without_progress(max_failures, saved_steps, num_attempts):
    run = LosingRun(saved_steps)
    limit = f"max_failures = {max_failures}.*raise it"
    with pytest.raises(BranchLost, match=rf"^gone\. That is loss {max_failures + 1} .*{limit}"):
        run.run(max_failures)
    assert run.calls.count("work") == num_attempts


def test_without_a_limit_it_never_gives_up():
    run = LosingRun([0] * 50)
    assert run.run(-1) == "done"
    assert run.messages[-1] == "gone. Beginning again after step 0, attempt 50."


def test_a_loss_during_a_restart_counts_like_any_other():
    run = LosingRun([4])

    def restart() -> None:
        raise BranchLost("gone again.")

    with pytest.raises(BranchLost, match="loss 2 without"):
        retry_lost_branches(
            run.work, restart=restart, progress=lambda: 4, max_failures=1, report=print
        )
    assert run.calls == ["work"]

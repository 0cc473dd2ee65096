"""Runs whose branches are lost: how often they begin again, from where, and what they say."""

from collections.abc import Iterable

import pytest

from copd.engine import BranchLost
from copd.run.recovery import retry_lost_branches


class Doomed:
    """Work that loses a branch as often as there are numbers of steps to have reached by then."""

    def __init__(self, reached: Iterable[int]) -> None:
        self.reached = list(reached)
        self.step = 0
        self.begun: list[str] = []
        self.said: list[str] = []

    def work(self, start: str) -> str:
        self.begun.append(start)
        if not self.reached:
            return "done"
        self.step = self.reached.pop(0)
        raise BranchLost("gone.")

    def run(self, max_failures: int) -> str:
        return retry_lost_branches(
            self.work,
            lambda: "first",
            again=lambda: "again",
            progress=lambda: self.step,
            max_failures=max_failures,
            say=self.said.append,
        )


@pytest.mark.parametrize(
    ("max_failures", "reached", "attempts"),
    [
        (3, [0, 0, 0], [1, 2, 3]),
        (3, [0, 0, 1, 1, 1, 2], [1, 2, 1, 2, 3, 1]),
        (1, [1, 2, 3], [1, 1, 1]),
        (0, [], []),
    ],
)
def test_a_new_checkpoint_makes_earlier_losses_forgotten(max_failures, reached, attempts):
    doomed = Doomed(reached)
    steps = [*reached]
    assert doomed.run(max_failures) == "done"
    assert doomed.begun == ["first"] + ["again"] * len(attempts)
    assert doomed.said == [
        f"gone. Beginning again after step {step}, attempt {n} of {max_failures}."
        for step, n in zip(steps, attempts, strict=True)
    ]


@pytest.mark.parametrize(
    ("max_failures", "reached", "num_begun"),
    [(3, [0] * 9, 4), (3, [0, 0, 5, *[5] * 9], 6), (0, [7], 1), (1, [1, 1], 2)],
)
def test_a_run_gives_up_after_losses_without_progress(max_failures, reached, num_begun):
    doomed = Doomed(reached)
    limit = f"max_failures = {max_failures}.*raise it"
    with pytest.raises(BranchLost, match=rf"^gone\. That is loss {max_failures + 1} .*{limit}"):
        doomed.run(max_failures)
    assert len(doomed.begun) == num_begun


def test_without_a_limit_it_never_gives_up():
    doomed = Doomed([0] * 50)
    assert doomed.run(-1) == "done"
    assert doomed.said[-1] == "gone. Beginning again after step 0, attempt 50."


def test_a_loss_while_the_first_checkpoint_is_read_counts_like_any_other():
    def first() -> str:
        raise BranchLost("gone.")

    ends = retry_lost_branches(
        str.upper, first, again=lambda: "end", progress=lambda: 4, max_failures=1, say=print
    )
    assert ends == "END"

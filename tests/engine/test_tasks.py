"""The order of tasks, on engines whose branches are names and whose methods wait for each other."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Barrier, Event
from typing import Any

import pytest

from copd.engine import BranchLost, BranchTask, Engine, run_tasks
from copd.engine.tasks import MAX_STEPS_AHEAD

Method = Callable[[Any, Any], Any]
LIMIT = 240.0
"""Seconds that a failing test waits for an event."""


def run_one(
    engine: Engine, tasks: Mapping[tuple[str, str], BranchTask]
) -> dict[tuple[str, str], Any]:
    """Run a single step."""
    (answers,) = run_tasks(engine, [tasks])
    return answers


class Names:
    """An engine whose branches are their names; it records all calls."""

    def __init__(self, *, is_parallel: bool) -> None:
        self.is_parallel = is_parallel
        self.calls: list[tuple[str, Any]] = []

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None: ...

    def drop(self, name: str) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...

    def call(self, method: Method, inputs: Any) -> Any:
        self.calls += inputs.items()
        return {name: method(name, value) for name, value in inputs.items()}


def echo(branch: Any, value: Any) -> Any:
    return f"{branch} {value}"


def task(branch: str, method: Method = echo, *needs: tuple[str, str]) -> BranchTask:
    return BranchTask(branch, method, lambda answers: [answers[need] for need in needs], needs)


def wait_for(event: Event) -> Method:
    def method(branch: Any, value: Any) -> Any:
        assert event.wait(LIMIT), "the event never came"
        return echo(branch, value)

    return method


def then_set(event: Event) -> Method:
    def method(branch: Any, value: Any) -> Any:
        event.set()
        return echo(branch, value)

    return method


def fail(error: Exception) -> Method:
    def method(branch: Any, value: Any) -> Any:
        raise error

    return method


@pytest.mark.parametrize("is_parallel", [False, True])
def test_outputs_are_those_of_running_tasks_in_order(is_parallel: bool):
    engine = Names(is_parallel=is_parallel)
    tasks = {
        ("sample", "a"): task("a"),
        ("sample", "b"): task("b"),
        ("score", "b"): task("b", echo, ("sample", "a")),
        ("update", "a"): task("a", echo, ("score", "b"), ("sample", "b")),
    }
    answers = run_one(engine, tasks)
    assert list(answers.items()) == [
        (("sample", "a"), "a []"),
        (("sample", "b"), "b []"),
        (("score", "b"), "b ['a []']"),
        (("update", "a"), """a ["b ['a []']", 'b []']"""),
    ]
    assert len(engine.calls) == 4


def test_a_teacher_scores_while_a_branch_that_it_does_not_need_still_samples():
    """`slow` samples until `fast` has scored and updated: a barrier would never end."""
    scored, updated = Event(), Event()

    def slow(branch: Any, value: Any) -> Any:
        assert scored.wait(LIMIT) and updated.wait(LIMIT), "the events never came"
        return echo(branch, value)

    tasks = {
        ("sample", "slow"): task("slow", slow),
        ("sample", "fast"): task("fast"),
        ("sample", "student"): task("student"),
        ("score", "fast"): task("fast", then_set(scored), ("sample", "student")),
        ("update", "student"): task("student", then_set(updated), ("score", "fast")),
    }
    assert len(run_one(Names(is_parallel=True), tasks)) == 5


def test_a_branch_runs_its_tasks_in_order():
    """Its update needs nothing that is missing, but must not overtake its scoring."""
    engine = Names(is_parallel=True)
    scored = Event()
    tasks = {
        ("sample", "student"): task("student", wait_for(scored)),
        ("sample", "teacher"): task("teacher", then_set(scored)),
        ("score", "teacher"): task("teacher", echo, ("sample", "student")),
        ("update", "teacher"): task("teacher"),
    }
    run_one(engine, tasks)
    assert [value for name, value in engine.calls if name == "teacher"] == [
        [],
        ["student []"],
        [],
    ]


def test_running_tasks_are_waited_for_and_a_loss_is_raised_before_an_error():
    engine, begun, failing, ended = Names(is_parallel=True), Barrier(3, timeout=LIMIT), Event(), []

    def error(branch: Any, value: Any) -> None:
        begun.wait()
        failing.set()
        raise ValueError("a mistake.")

    def late(branch: Any, value: Any) -> None:
        begun.wait()
        assert failing.wait(LIMIT)
        ended.append(branch)

    def lost(branch: Any, value: Any) -> None:
        begun.wait()
        assert failing.wait(LIMIT)
        raise BranchLost("gone.")

    tasks = {
        ("sample", "a"): task("a", error),
        ("sample", "b"): task("b", late),
        ("sample", "c"): task("c", lost),
        ("update", "b"): task("b"),
        ("update", "c"): task("c", echo, ("sample", "b")),
    }
    with pytest.raises(BranchLost, match="gone"):
        run_one(engine, tasks)
    assert ended == ["b"]
    assert len(engine.calls) <= 4  # c never updates


def test_an_error_in_one_process_stops_there():
    engine = Names(is_parallel=False)
    tasks = {("sample", "a"): task("a", fail(ValueError("no."))), ("sample", "b"): task("b")}
    with pytest.raises(ValueError, match="no"):
        run_one(engine, tasks)
    assert engine.calls == [("a", [])]


def test_a_fast_branch_is_ahead_and_results_come_in_order():
    """`slow` ends its first step once `fast` has started the last step it may."""
    ahead = Event()

    def fast(index: int) -> Method:
        return then_set(ahead) if index == MAX_STEPS_AHEAD - 1 else echo

    def steps() -> list[dict[tuple[str, str], BranchTask]]:
        return [
            {
                ("sample", "slow"): task("slow", wait_for(ahead)),
                ("sample", "fast"): task("fast", fast(index)),
                ("update", "fast"): task("fast", echo, ("sample", "fast")),
            }
            for index in range(MAX_STEPS_AHEAD + 2)
        ]

    engine = Names(is_parallel=True)
    found = list(run_tasks(engine, steps()))
    assert found == list(run_tasks(Names(is_parallel=False), steps()))
    assert len(found) == MAX_STEPS_AHEAD + 2 and all(len(answers) == 3 for answers in found)
    assert [value for name, value in engine.calls if name == "fast"] == [
        [],
        ["fast []"],
    ] * len(found)


def test_no_branch_is_further_ahead_of_the_taken_steps_than_allowed():
    engine = Names(is_parallel=True)
    found = run_tasks(engine, [{("sample", "a"): task("a")}] * (MAX_STEPS_AHEAD + 5))
    for taken in (1, 2):
        next(found)
        wait_until(lambda allowed=taken + MAX_STEPS_AHEAD: len(engine.calls) == allowed)
        time.sleep(0.02)  # one call too many would come now
        assert len(engine.calls) == taken + MAX_STEPS_AHEAD
    found.close()
    wait_until(lambda: not threads_of_branches())
    assert len(engine.calls) == 2 + MAX_STEPS_AHEAD


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not reached():
        assert time.monotonic() < deadline, "the state was never reached"
        time.sleep(0.001)


def threads_of_branches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("branch")]


@pytest.mark.parametrize("error", [ValueError("no."), BranchLost("gone.")])
def test_before_an_error_all_earlier_steps_end_and_before_a_loss_none(error: Exception):
    """`fast` fails in its second step while `slow` is still in its first."""
    engine, begun = Names(is_parallel=True), Event()

    def failed(branch: Any, value: Any) -> None:
        assert begun.wait(LIMIT)
        raise error

    def slow(branch: Any, value: Any) -> Any:
        begun.set()
        wait_until(lambda: len(threads_of_branches()) == 1)
        return echo(branch, value)

    own = {("sample", "slow"): task("slow"), ("update", "slow"): task("slow")}
    steps = [
        {("sample", "fast"): task("fast"), **own, ("sample", "slow"): task("slow", slow)},
        {("sample", "fast"): task("fast", failed), **own},
    ]
    taken = []
    with pytest.raises(type(error)):
        for answers in run_tasks(engine, steps):
            taken.append(answers)
    is_loss = isinstance(error, BranchLost)
    assert len(taken) == (0 if is_loss else 1)
    assert len([name for name, _ in engine.calls if name == "slow"]) == (1 if is_loss else 2)


def labelled(branch: str, label: str, *needs: tuple[str, str], method: Method = echo) -> BranchTask:
    return BranchTask(branch, method, lambda _: label, needs)


def test_asynchronous_tasks_are_overtaken_while_they_wait_and_stay_in_order():
    """`slow` samples once `fast` has updated twice, though `fast` scores both samples."""
    twice = Event()
    sample, snapshot = ("sample", "fast"), ("snapshot", "fast")

    def step(index: int, method: Method, *, snapshots: bool) -> dict[tuple[str, str], BranchTask]:
        copying = replace(labelled("fast", f"snapshot {index}", sample), is_asynchronous=True)
        scoring = labelled("fast", f"score {index}", ("sample", "slow"))
        update = labelled("fast", f"update {index}", *[snapshot] * snapshots, method=method)
        return {
            ("sample", "slow"): labelled("slow", f"sample {index}", method=wait_for(twice)),
            sample: labelled("fast", f"sample {index}"),
            **({snapshot: copying} if snapshots else {}),
            ("score", "fast"): replace(scoring, is_asynchronous=True),
            ("update", "fast"): update,
        }

    engine = Names(is_parallel=True)
    steps = [
        step(1, echo, snapshots=True),
        step(2, then_set(twice), snapshots=False),
        step(3, echo, snapshots=True),
    ]
    assert len(list(run_tasks(engine, steps))) == 3
    order = [label for name, label in engine.calls if name == "fast"]
    assert order[:5] == ["sample 1", "snapshot 1", "update 1", "sample 2", "update 2"]
    moments = {label: place for place, label in enumerate(order)}
    assert moments["score 1"] < moments["score 2"] < moments["snapshot 3"] < moments["update 3"]
    assert len(order) == len(moments) == 11

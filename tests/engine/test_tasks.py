"""Who waits for whom: on engines whose branches are names, and whose methods wait for each other."""

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
LIMIT = 20.0


def run_one(
    engine: Engine, tasks: Mapping[tuple[str, str], BranchTask]
) -> dict[tuple[str, str], Any]:
    """A step alone."""
    (answers,) = run_tasks(engine, [tasks])
    return answers


class Names:
    """An engine whose branches are their names."""

    def __init__(self, *, is_parallel: bool) -> None:
        self.is_parallel = is_parallel
        self.asked: list[tuple[str, Any]] = []

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None: ...

    def drop(self, name: str) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...

    def call(self, method: Method, inputs: Any) -> Any:
        self.asked += inputs.items()
        return {name: method(name, value) for name, value in inputs.items()}


def answer(branch: Any, value: Any) -> Any:
    return f"{branch} {value}"


def task(branch: str, method: Method = answer, *needs: tuple[str, str]) -> BranchTask:
    return BranchTask(branch, method, lambda answers: [answers[need] for need in needs], needs)


def wait_for(event: Event) -> Method:
    def method(branch: Any, value: Any) -> Any:
        assert event.wait(LIMIT), "nobody came"
        return answer(branch, value)

    return method


def then_set(event: Event) -> Method:
    def method(branch: Any, value: Any) -> Any:
        event.set()
        return answer(branch, value)

    return method


def fail(error: Exception) -> Method:
    def method(branch: Any, value: Any) -> Any:
        raise error

    return method


@pytest.mark.parametrize("is_parallel", [False, True])
def test_answers_are_those_of_doing_it_in_order(is_parallel: bool):
    engine = Names(is_parallel=is_parallel)
    tasks = {
        ("sample", "a"): task("a"),
        ("sample", "b"): task("b"),
        ("score", "b"): task("b", answer, ("sample", "a")),
        ("update", "a"): task("a", answer, ("score", "b"), ("sample", "b")),
    }
    answers = run_one(engine, tasks)
    assert list(answers.items()) == [
        (("sample", "a"), "a []"),
        (("sample", "b"), "b []"),
        (("score", "b"), "b ['a []']"),
        (("update", "a"), """a ["b ['a []']", 'b []']"""),
    ]
    assert len(engine.asked) == 4


def test_a_teacher_scores_while_a_branch_that_it_does_not_need_still_samples():
    """`slow` samples until `fast` has scored and updated: with a barrier nobody ever would."""
    scored, updated = Event(), Event()

    def slow(branch: Any, value: Any) -> Any:
        assert scored.wait(LIMIT) and updated.wait(LIMIT), "nobody came"
        return answer(branch, value)

    tasks = {
        ("sample", "slow"): task("slow", slow),
        ("sample", "fast"): task("fast"),
        ("sample", "student"): task("student"),
        ("score", "fast"): task("fast", then_set(scored), ("sample", "student")),
        ("update", "student"): task("student", then_set(updated), ("score", "fast")),
    }
    assert len(run_one(Names(is_parallel=True), tasks)) == 5


def test_a_branch_does_its_tasks_in_their_order():
    """Its update needs nothing that is missing, but it is still to score: it must not move."""
    engine = Names(is_parallel=True)
    scored = Event()
    tasks = {
        ("sample", "student"): task("student", wait_for(scored)),
        ("sample", "teacher"): task("teacher", then_set(scored)),
        ("score", "teacher"): task("teacher", answer, ("sample", "student")),
        ("update", "teacher"): task("teacher"),
    }
    run_one(engine, tasks)
    assert [value for name, value in engine.asked if name == "teacher"] == [
        [],
        ["student []"],
        [],
    ]


def test_what_runs_is_waited_for_and_a_loss_comes_before_an_error():
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
        ("update", "c"): task("c", answer, ("sample", "b")),
    }
    with pytest.raises(BranchLost, match="gone"):
        run_one(engine, tasks)
    assert ended == ["b"]
    assert len(engine.asked) <= 4  # c never updates


def test_an_error_in_one_process_stops_there():
    engine = Names(is_parallel=False)
    tasks = {("sample", "a"): task("a", fail(ValueError("no."))), ("sample", "b"): task("b")}
    with pytest.raises(ValueError, match="no"):
        run_one(engine, tasks)
    assert engine.asked == [("a", [])]


def test_a_fast_branch_is_ahead_and_results_come_in_order():
    """`slow` ends its first step once `fast` has begun its last that is near enough."""
    ahead = Event()

    def fast(index: int) -> Method:
        return then_set(ahead) if index == MAX_STEPS_AHEAD - 1 else answer

    def steps() -> list[dict[tuple[str, str], BranchTask]]:
        return [
            {
                ("sample", "slow"): task("slow", wait_for(ahead)),
                ("sample", "fast"): task("fast", fast(index)),
                ("update", "fast"): task("fast", answer, ("sample", "fast")),
            }
            for index in range(MAX_STEPS_AHEAD + 2)
        ]

    engine = Names(is_parallel=True)
    found = list(run_tasks(engine, steps()))
    assert found == list(run_tasks(Names(is_parallel=False), steps()))
    assert len(found) == MAX_STEPS_AHEAD + 2 and all(len(answers) == 3 for answers in found)
    assert [value for name, value in engine.asked if name == "fast"] == [
        [],
        ["fast []"],
    ] * len(found)


def test_nobody_is_further_ahead_than_what_was_taken_allows():
    engine = Names(is_parallel=True)
    found = run_tasks(engine, [{("sample", "a"): task("a")}] * (MAX_STEPS_AHEAD + 5))
    for taken in (1, 2):
        next(found)
        wait_until(lambda allowed=taken + MAX_STEPS_AHEAD: len(engine.asked) == allowed)
        time.sleep(0.02)  # for one too many
        assert len(engine.asked) == taken + MAX_STEPS_AHEAD
    found.close()
    wait_until(lambda: not threads_of_branches())
    assert len(engine.asked) == 2 + MAX_STEPS_AHEAD


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not reached():
        assert time.monotonic() < deadline, "it never was"
        time.sleep(0.001)


def threads_of_branches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("branch")]


@pytest.mark.parametrize("error", [ValueError("no."), BranchLost("gone.")])
def test_before_an_error_all_earlier_steps_are_taken_and_before_a_loss_none(error: Exception):
    """`fast` fails in its second step while `slow` is still in the first one."""
    engine, begun = Names(is_parallel=True), Event()

    def failed(branch: Any, value: Any) -> None:
        assert begun.wait(LIMIT)
        raise error

    def slow(branch: Any, value: Any) -> Any:
        begun.set()
        wait_until(lambda: len(threads_of_branches()) == 1)
        return answer(branch, value)

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
    assert len([name for name, _ in engine.asked if name == "slow"]) == (1 if is_loss else 2)


def said(branch: str, label: str, *needs: tuple[str, str], method: Method = answer) -> BranchTask:
    return BranchTask(branch, method, lambda _: label, needs)


def test_what_is_aside_is_overtaken_while_it_cannot_begin_and_keeps_its_own_order():
    """`slow` samples once `fast` has updated twice, though `fast` is asked about both samples."""
    twice = Event()
    sampled, kept = ("sample", "fast"), ("snapshot", "fast")

    def step(index: int, method: Method, *, keeps: bool) -> dict[tuple[str, str], BranchTask]:
        keep = replace(said("fast", f"keep {index}", sampled), is_asynchronous=True)
        score = replace(said("fast", f"score {index}", ("sample", "slow")), is_asynchronous=True)
        return {
            ("sample", "slow"): said("slow", f"sample {index}", method=wait_for(twice)),
            sampled: said("fast", f"sample {index}"),
            **({kept: keep} if keeps else {}),
            ("score", "fast"): score,
            ("update", "fast"): said("fast", f"update {index}", *[kept] * keeps, method=method),
        }

    engine = Names(is_parallel=True)
    steps = [
        step(1, answer, keeps=True),
        step(2, then_set(twice), keeps=False),
        step(3, answer, keeps=True),
    ]
    assert len(list(run_tasks(engine, steps))) == 3
    order = [label for name, label in engine.asked if name == "fast"]
    assert order[:5] == ["sample 1", "keep 1", "update 1", "sample 2", "update 2"]
    moments = {label: place for place, label in enumerate(order)}
    assert moments["score 1"] < moments["score 2"] < moments["keep 3"] < moments["update 3"]
    assert len(order) == len(moments) == 11

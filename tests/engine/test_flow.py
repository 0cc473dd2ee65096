"""Who waits for whom: on engines whose branches are names, and whose verbs wait for each other."""

from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from copd.engine import BranchLost, Task, run_tasks

Verb = Callable[[Any, Any], Any]
LIMIT = 20.0


class Names:
    """An engine whose branches are their names."""

    def __init__(self, *, is_parallel: bool) -> None:
        self.is_parallel = is_parallel
        self.asked: list[tuple[str, Any]] = []

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None: ...

    def drop(self, name: str) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...

    def each(self, verb: Verb, inputs: Any) -> Any:
        self.asked += inputs.items()
        return {name: verb(name, value) for name, value in inputs.items()}


def answer(branch: Any, value: Any) -> Any:
    return f"{branch} {value}"


def task(branch: str, verb: Verb = answer, *needs: tuple[str, str]) -> Task:
    return Task(branch, verb, lambda answers: [answers[need] for need in needs], needs)


def wait_for(event: Event) -> Verb:
    def verb(branch: Any, value: Any) -> Any:
        assert event.wait(LIMIT), "nobody came"
        return answer(branch, value)

    return verb


def then_set(event: Event) -> Verb:
    def verb(branch: Any, value: Any) -> Any:
        event.set()
        return answer(branch, value)

    return verb


def fail(error: Exception, before: Event | None = None) -> Verb:
    def verb(branch: Any, value: Any) -> Any:
        assert before is None or before.wait(LIMIT)
        raise error

    return verb


@pytest.mark.parametrize("is_parallel", [False, True])
def test_answers_are_those_of_doing_it_in_order(is_parallel: bool):
    engine = Names(is_parallel=is_parallel)
    tasks = {
        ("sample", "a"): task("a"),
        ("sample", "b"): task("b"),
        ("score", "b"): task("b", answer, ("sample", "a")),
        ("update", "a"): task("a", answer, ("score", "b"), ("sample", "b")),
    }
    answers = run_tasks(engine, tasks)
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
    assert len(run_tasks(Names(is_parallel=True), tasks)) == 5


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
    run_tasks(engine, tasks)
    assert [value for name, value in engine.asked if name == "teacher"] == [
        [],
        ["student []"],
        [],
    ]


def test_what_runs_is_waited_for_and_a_loss_comes_before_an_error():
    engine, failing, ended = Names(is_parallel=True), Event(), []

    def error(branch: Any, value: Any) -> None:
        failing.set()
        raise ValueError("a mistake.")

    def late(branch: Any, value: Any) -> None:
        assert failing.wait(LIMIT)
        ended.append(branch)

    tasks = {
        ("sample", "a"): task("a", error),
        ("sample", "b"): task("b", late),
        ("sample", "c"): task("c", fail(BranchLost("gone."), failing)),
        ("update", "b"): task("b"),
        ("update", "c"): task("c", answer, ("sample", "b")),
    }
    with pytest.raises(BranchLost, match="gone"):
        run_tasks(engine, tasks)
    assert ended == ["b"]
    assert len(engine.asked) <= 4  # c never updates


def test_an_error_in_one_process_stops_there():
    engine = Names(is_parallel=False)
    tasks = {("sample", "a"): task("a", fail(ValueError("no."))), ("sample", "b"): task("b")}
    with pytest.raises(ValueError, match="no"):
        run_tasks(engine, tasks)
    assert engine.asked == [("a", [])]

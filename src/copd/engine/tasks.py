"""Verbs that wait for each other: each begins as soon as what it needs is there.

Knows no recipe, and no way a branch is asked but the engine's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any

from copd.branch import Branch
from copd.engine.base import BranchLost, Engine

Key = tuple[str, str]
Outputs = Mapping[Key, Any]

MAX_STEPS_AHEAD = 3
"""How many a branch may begin before the first of them is taken: their answers are in memory."""


@dataclass(frozen=True)
class BranchTask:
    """A method for one branch; its input is made of the answers to the tasks it needs."""

    branch: str
    method: Callable[[Branch, Any], Any]
    request: Callable[[Outputs], Any]
    needs: tuple[Key, ...] = ()
    """BranchTasks of the same step, and earlier ones."""
    is_asynchronous: bool = False
    """Its branch goes on without it while it cannot begin, up to the next one that is aside."""


BranchTasks = Mapping[Key, BranchTask]
"""Of one step."""


def run_tasks(
    engine: Engine, steps: Sequence[BranchTasks]
) -> Generator[dict[Key, Any], None, None]:
    """The answers of one step after another, each in the order of its tasks.

    A branch does its own tasks in the order of steps and tasks, those that are aside in an order of
    their own. In one process all do them in the order given; where they have their own, nobody
    waits for more than it needs, not even for others to end a step: whoever takes the answers must
    want all these steps taken. Close it when you leave early.
    """
    for tasks in steps:
        _check(tasks)
    if engine.is_parallel:
        yield from _side_by_side(engine, steps)
        return
    for tasks in steps:
        answers: dict[Key, Any] = {}
        for key, task in tasks.items():
            answers[key] = _ask(engine, task, answers)
        yield answers


def _check(tasks: BranchTasks) -> None:
    earlier: set[Key] = set()
    for key, task in tasks.items():
        assert earlier.issuperset(task.needs), "a task needs one that is not there, or a later one"
        earlier.add(key)


def _ask(engine: Engine, task: BranchTask, answers: Outputs) -> Any:
    request = task.request(answers)
    return engine.call(task.method, {task.branch: request})[task.branch]


def _side_by_side(
    engine: Engine, steps: Sequence[BranchTasks]
) -> Generator[dict[Key, Any], None, None]:
    """A thread per branch, which does that branch's tasks."""
    names = dict.fromkeys(task.branch for tasks in steps for task in tasks.values())
    board = _Dispatcher(steps, len(names))
    try:
        for name in names:
            Thread(target=_do_all, args=(engine, board, name), name=f"branch {name}").start()
        for index in range(len(steps)):
            yield board.take(index)
    finally:
        board.stop(0)


def _do_all(engine: Engine, board: _Dispatcher, branch: str) -> None:
    try:
        while (found := board.next_of(branch)) is not None:
            index, key = found
            try:
                board.put(index, key, _ask(engine, board.steps[index][key], board.answers[index]))
            except Exception as error:
                board.fail(index, key, error)
    finally:
        board.leave()


class _Dispatcher:
    """What has been answered so far, and what may begin; all threads look at it.

    After an error nothing of its step or of a later one begins any more, and earlier steps come to
    their end, so that the same steps were taken as one after another. After a loss nothing begins.
    """

    def __init__(self, steps: Sequence[BranchTasks], num_threads: int) -> None:
        self.steps = steps
        self.answers: list[dict[Key, Any]] = [{} for _ in steps]
        self._places = [(index, key) for index, tasks in enumerate(steps) for key in tasks]
        self._lanes: dict[str, tuple[deque[int], deque[int]]] = {}
        for number, (index, key) in enumerate(self._places):
            task = steps[index][key]
            lanes = self._lanes.setdefault(task.branch, (deque(), deque()))
            lanes[task.is_asynchronous].append(number)
        self._failed: dict[tuple[int, Key], Exception] = {}
        self._num_threads = num_threads
        self._num_taken = 0
        self._end = len(steps)
        self._changed = Condition()

    def next_of(self, branch: str) -> tuple[int, Key] | None:
        """The step and key of what a branch does next, once it can; None when that was all."""
        with self._changed:
            while heads := self._heads(branch):
                for number, lane in heads:
                    if self._is_ready(*self._places[number]):
                        lane.popleft()
                        return self._places[number]
                self._changed.wait()
        return None

    def _heads(self, branch: str) -> list[tuple[int, deque[int]]]:
        """What comes first among a branch's tasks, and among those aside, unless it has ended."""
        heads = [(lane[0], lane) for lane in self._lanes[branch] if lane]
        return sorted(head for head in heads if self._places[head[0]][0] < self._end)

    def _is_ready(self, index: int, key: Key) -> bool:
        is_near = index < self._num_taken + MAX_STEPS_AHEAD
        return is_near and all(n in self.answers[index] for n in self.steps[index][key].needs)

    def put(self, index: int, key: Key, answer: Any) -> None:
        with self._changed:
            self.answers[index][key] = answer
            self._changed.notify_all()

    def fail(self, index: int, key: Key, error: Exception) -> None:
        with self._changed:
            self._failed[index, key] = error
        self.stop(0 if isinstance(error, BranchLost) else index)

    def stop(self, end: int) -> None:
        """Nothing begins any more of the step `end` or later ones."""
        with self._changed:
            self._end = min(self._end, end)
            self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self._num_threads -= 1
            self._changed.notify_all()

    def take(self, index: int) -> dict[Key, Any]:
        """A step's answers, once all are there; what runs is waited for before an error is raised.

        Somebody could else still be asked when the branches are brought to life again.
        """
        with self._changed:
            tasks, found = self.steps[index], self.answers[index]
            self._changed.wait_for(lambda: len(found) == len(tasks) or not self._num_threads)
            if len(found) < len(tasks):
                raise self._worst()
            self.answers[index] = {}
            self._num_taken += 1
            self._changed.notify_all()
            return {key: found[key] for key in tasks}

    def _worst(self) -> Exception:
        """A loss, from which a run recovers, before what it may have caused; then the first."""
        ordered = [self._failed[place] for place in self._places if place in self._failed]
        assert ordered, "threads end when all is done, or after a failure"
        return next((error for error in ordered if isinstance(error, BranchLost)), ordered[0])

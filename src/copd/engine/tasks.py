"""Tasks of branches that depend on each other; each starts as soon as its inputs are there."""

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
"""Steps that a branch may start before the first of them is taken; bounds the outputs in memory."""


@dataclass(frozen=True)
class BranchTask:
    """A method call on one branch; its input is made of the outputs of other tasks."""

    branch: str
    method: Callable[[Branch, Any], Any]
    request: Callable[[Outputs], Any]
    """Builds the input of the method."""
    needs: tuple[Key, ...] = ()
    """Earlier tasks of the same step whose outputs `request` reads."""
    is_asynchronous: bool = False
    """Whether ordinary tasks of the branch may overtake this one while it waits for its needs."""


BranchTasks = Mapping[Key, BranchTask]
"""The tasks of one step."""


def run_tasks(
    engine: Engine, steps: Sequence[BranchTasks]
) -> Generator[dict[Key, Any], None, None]:
    """Run the tasks of consecutive steps.

    A sequential engine runs tasks in the given order. On a parallel engine each branch runs its
    ordinary tasks in that order, its asynchronous ones in an order of their own, and may be steps
    ahead of the others. Close the generator to leave early.

    Args:
        engine: Engine with the branches.
        steps: The tasks of each step by key; a task follows those it needs.

    Yields:
        The outputs of one step after another, in the order of its tasks. An exception of a task is
        raised once no task is running.
    """
    for tasks in steps:
        keys = list(tasks)
        for index, task in enumerate(tasks.values()):
            assert set(task.needs) <= {*keys[:index]}, "a task needs a missing or a later one"
    if engine.is_parallel:
        yield from _Dispatcher(engine, steps).run()
        return
    for tasks in steps:
        outputs: dict[Key, Any] = {}
        for key, task in tasks.items():
            outputs[key] = _run_task(engine, task, outputs)
        yield outputs


def _run_task(engine: Engine, task: BranchTask, outputs: Outputs) -> Any:
    return engine.call(task.method, {task.branch: task.request(outputs)})[task.branch]


class _Dispatcher:
    """Decides which tasks start; shared by the caller and one thread per branch.

    After an error no task of that step or a later one starts and earlier steps finish, as if steps
    ran one after another. After a lost branch nothing starts.
    """

    def __init__(self, engine: Engine, steps: Sequence[BranchTasks]) -> None:
        self._engine, self._steps = engine, steps
        self._outputs: list[dict[Key, Any]] = [{} for _ in steps]
        self._places = [(index, key) for index, tasks in enumerate(steps) for key in tasks]
        self._queues: dict[str, tuple[deque[int], deque[int]]] = {}
        """The places of a branch's pending tasks: ordinary ones and asynchronous ones."""
        for place, (index, key) in enumerate(self._places):
            task = steps[index][key]
            queues = self._queues.setdefault(task.branch, (deque(), deque()))
            queues[task.is_asynchronous].append(place)
        self._failures: dict[int, Exception] = {}
        self._num_threads = len(self._queues)
        self._num_taken = 0
        self._end = len(steps)
        self._changed = Condition()

    def run(self) -> Generator[dict[Key, Any], None, None]:
        try:
            for name in self._queues:
                Thread(target=self._run_branch, args=(name,), name=f"branch {name}").start()
            for index in range(len(self._steps)):
                yield self._take(index)
        finally:
            self._stop(0)

    def _run_branch(self, branch: str) -> None:
        """Run the tasks of one branch until all are done or none may start."""
        try:
            while (place := self._next_place(branch)) is not None:
                index, key = self._places[place]
                try:
                    output = _run_task(self._engine, self._steps[index][key], self._outputs[index])
                except Exception as error:
                    self._failures[place] = error
                    self._stop(0 if isinstance(error, BranchLost) else index)
                else:
                    with self._changed:
                        self._outputs[index][key] = output
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._num_threads -= 1
                self._changed.notify_all()

    def _next_place(self, branch: str) -> int | None:
        """Wait for the next task of a branch that may start; None if there is none."""
        with self._changed:
            while heads := self._heads(branch):
                for place, queue in heads:
                    if self._is_ready(*self._places[place]):
                        return queue.popleft()
                self._changed.wait()
        return None

    def _heads(self, branch: str) -> list[tuple[int, deque[int]]]:
        """Return the first tasks of a branch's queues, in the order of tasks."""
        heads = [(queue[0], queue) for queue in self._queues[branch] if queue]
        return sorted(head for head in heads if self._places[head[0]][0] < self._end)

    def _is_ready(self, index: int, key: Key) -> bool:
        is_near = index < self._num_taken + MAX_STEPS_AHEAD
        return is_near and all(n in self._outputs[index] for n in self._steps[index][key].needs)

    def _stop(self, end: int) -> None:
        """Start no more tasks of the step `end` and later ones."""
        with self._changed:
            self._end = min(self._end, end)
            self._changed.notify_all()

    def _take(self, index: int) -> dict[Key, Any]:
        """Wait for the outputs of a step.

        After a failure wait for all threads, so that no branch is in a call when a run restarts it,
        and raise the first loss, which may have caused the errors, or else the first error.
        """
        with self._changed:
            tasks, outputs = self._steps[index], self._outputs[index]
            self._changed.wait_for(lambda: len(outputs) == len(tasks) or not self._num_threads)
            if len(outputs) < len(tasks):
                lost = [p for p, error in self._failures.items() if isinstance(error, BranchLost)]
                raise self._failures[min(lost or self._failures)]
            self._outputs[index] = {}
            self._num_taken += 1
            self._changed.notify_all()
            return {key: outputs[key] for key in tasks}

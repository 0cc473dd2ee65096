"""Verbs that wait for each other: each begins as soon as what it needs is there.

Knows no recipe, and no way a branch is asked but the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from copd.branch import Branch
from copd.engine.base import BranchLost, Engine

Key = tuple[str, str]
Answers = Mapping[Key, Any]


@dataclass(frozen=True)
class Task:
    """A verb for one branch; its input is made of the answers to the tasks it needs."""

    branch: str
    verb: Callable[[Branch, Any], Any]
    request: Callable[[Answers], Any]
    needs: tuple[Key, ...] = ()


def run_tasks(engine: Engine, tasks: Mapping[Key, Task]) -> dict[Key, Any]:
    """All answers, in the order of the tasks, of which none needs a later one.

    A branch does its own tasks in this order. In one process so do all branches; where they have
    their own, nobody waits for more than it needs.
    """
    if engine.is_parallel:
        return _side_by_side(engine, tasks)
    answers: dict[Key, Any] = {}
    for key, task in tasks.items():
        answers[key] = _ask(engine, task, task.request(answers))
    return answers


def _side_by_side(engine: Engine, tasks: Mapping[Key, Task]) -> dict[Key, Any]:
    """After a failure nothing new begins, and what runs is waited for.

    Somebody could else still be asked when the branches are brought to life again.
    """
    answers: dict[Key, Any] = {}
    failed: dict[Key, Exception] = {}
    running: dict[Future[Any], Key] = {}
    pool = ThreadPoolExecutor(max_workers=len({task.branch for task in tasks.values()}) or 1)
    try:
        while len(answers) < len(tasks):
            for key in () if failed else list(_ready(tasks, answers, set(running.values()))):
                request = tasks[key].request(answers)
                running[pool.submit(_ask, engine, tasks[key], request)] = key
            if not running:
                raise _worst(tasks, failed)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key, error = running.pop(future), future.exception()
                if error is None:
                    answers[key] = future.result()
                elif isinstance(error, Exception):
                    failed[key] = error
                else:
                    raise error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return {key: answers[key] for key in tasks}


def _ready(tasks: Mapping[Key, Task], answers: Answers, running: set[Key]) -> Iterator[Key]:
    """Tasks that can begin: needs answered, and nothing left to do before by the same branch."""
    occupied = {tasks[key].branch for key in running}
    for key, task in tasks.items():
        if key in answers or key in running:
            continue
        if task.branch not in occupied and all(need in answers for need in task.needs):
            yield key
        occupied.add(task.branch)


def _worst(tasks: Mapping[Key, Task], failed: Mapping[Key, Exception]) -> Exception:
    """A loss, from which a run recovers, before what else it may have caused; then the first."""
    assert failed, "a task needs one that is not there, or a later one"
    ordered = [failed[key] for key in tasks if key in failed]
    return next((error for error in ordered if isinstance(error, BranchLost)), ordered[0])


def _ask(engine: Engine, task: Task, request: Any) -> Any:
    return engine.each(task.verb, {task.branch: request})[task.branch]

"""The deaths that are drawn, and the processes that die."""

import os
import signal
import subprocess
import time
from collections import Counter
from itertools import pairwise

import pytest

from scripts.kills.processes import children, send, status_of
from scripts.kills.schedule import KINDS, MERGE, METHODS, RECOVERY, draw


@pytest.mark.parametrize("seed", range(20))
def test_deaths_cover_the_whole_run_and_each_can_happen(seed):
    kills = draw(seed, 10, num_steps=24)
    assert kills == draw(seed, 10, num_steps=24) != draw(seed + 1, 10, num_steps=24)
    assert min(Counter(kill.kind for kill in kills).values()) == 10 // len(KINDS)
    stages = [kill.stage for kill in kills]
    assert stages[-1] == MERGE and kills[-1].step == 25
    assert {*stages} == {*METHODS, RECOVERY, MERGE}
    assert stages[0] != RECOVERY, "nothing has died before"
    for before, kill in pairwise(kills[:-1]):
        assert kill.step == before.step if kill.stage == RECOVERY else kill.step >= before.step
    assert {0 <= kill.share < 1 for kill in kills} == {True}
    assert 1 <= kills[0].step <= kills[-2].step < 24


def test_steps_of_deaths_are_spread():
    steps = [kill.step for seed in range(50) for kill in draw(seed, 10, num_steps=24)[:-1]]
    assert {*steps} == set(range(1, 24))


def test_a_process_is_known_by_its_name_and_whether_it_runs():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            assert process.pid in children(os.getpid())
            for what, lives in ((signal.SIGSTOP, False), (signal.SIGCONT, True)):
                send(what, [process.pid])
                require("sleep", lives, process.pid)
        finally:
            send(signal.SIGKILL, [process.pid])
        require("sleep", False, process.pid)
    assert status_of(process.pid) == ("", False, 0)
    send(signal.SIGKILL, [process.pid])


def require(name: str, lives: bool, pid: int) -> None:
    """A signal takes a moment."""
    deadline = time.monotonic() + 10
    while status_of(pid)[:2] != (name, lives) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert status_of(pid) == (name, lives, os.getpid())

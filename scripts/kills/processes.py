"""Processes of this machine; a raylet with its children is a simulated machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from scripts.kills.schedule import Kind


def destroy(kind: Kind, process: int) -> None:
    """Kill or stop a process, or the raylet that started it, or the raylet with its children."""
    raylet = status_of(process)[2]
    assert status_of(raylet)[0] == "raylet", "a worker's parent is its raylet"
    if kind == "hang":
        send(signal.SIGSTOP, [process])
        return
    machine = [raylet, *children(raylet), process]
    send(signal.SIGKILL, {"process": [process], "raylet": [raylet], "machine": machine}[kind])


def send(sent: signal.Signals, processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, sent)


def machines() -> list[int]:
    """Return the running raylets that this process started, without the first, the head's."""
    own = sorted(pid for pid in children(os.getpid()) if status_of(pid)[:2] == ("raylet", True))
    return own[1:]


def is_host(process: int) -> bool:
    """Return whether a process runs a branch; Ray names it after its class."""
    name, is_alive, _ = status_of(process)
    return is_alive and name.startswith("ray::Actor")


def children(parent: int) -> list[int]:
    processes = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in processes if status_of(pid)[2] == parent]


def status_of(process: int) -> tuple[str, bool, int]:
    """Return a process's name, whether it runs, and its parent."""
    try:
        line = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it has ended
        return "", False, 0
    name, _, rest = line.partition("(")[2].rpartition(")")
    state, parent, *_ = rest.split()
    return name, state not in "ZXTt", int(parent)

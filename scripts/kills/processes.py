"""Processes of this machine and how they end; a raylet and its children are a simulated machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from scripts.kills.drawn import Kind


def destroy(kind: Kind, process: int) -> None:
    """Ends a process, or the raylet that has started it, or both with all there is beside it."""
    raylet = status_of(process)[2]
    assert status_of(raylet)[0] == "raylet", "a worker's parent is its raylet"
    match kind:
        case "hang":
            send(signal.SIGSTOP, [process])
        case "process":
            send(signal.SIGKILL, [process])
        case "raylet":
            send(signal.SIGKILL, [raylet])
        case "machine":
            send(signal.SIGKILL, [raylet, *children(raylet), process])


def send(what: signal.Signals, processes: Iterable[int]) -> None:
    for process in processes:
        try:
            os.kill(process, what)
        except ProcessLookupError:
            continue


def machines() -> list[int]:
    """Raylets that this process has started and that live, without the first, the head's."""
    own = sorted(pid for pid in children(os.getpid()) if status_of(pid)[:2] == ("raylet", True))
    return own[1:]


def is_host(process: int) -> bool:
    """True for a branch's process that lives; Ray names it after its class."""
    name, lives, _ = status_of(process)
    return lives and name.startswith("ray::Actor")


def children(parent: int) -> list[int]:
    """The processes that another has started."""
    everybody = (int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in everybody if status_of(pid)[2] == parent]


def status_of(process: int) -> tuple[str, bool, int]:
    """A process's name, whether it lives, and its parent."""
    try:
        line = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # it has ended meanwhile
        return "", False, 0
    name, _, rest = line.partition("(")[2].rpartition(")")
    state, parent, *_ = rest.split()
    return name, state not in "ZXTt", int(parent)

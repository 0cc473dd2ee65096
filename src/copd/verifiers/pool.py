"""Worker processes that answer calls within limits of time and memory. Knows no verifier.

A call that exceeds them costs its limit and ends in None; its worker is replaced.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from queue import LifoQueue
from time import monotonic
from typing import Any

from copd.verifiers.child import NUM_WAITING

CHILD = Path(__file__).with_name("child.py")

NUM_CALLS = 32
"""Calls a worker is handed at once; a batch of more is shared among workers."""

MAX_WORKERS = 8
MAX_DEATHS = 16
"""Calls in a row that may kill their worker before that is no accident."""

_START_SECONDS = 300.0
_GRACE_SECONDS = 5.0

Call = tuple[Any, ...]


@dataclass(frozen=True)
class WorkerSpec:
    """What workers do, and what a call may cost."""

    kind: str
    """Key of `JOBS` in the child."""
    settings: str
    """Arguments of the job as JSON."""
    seconds: float
    memory_bytes: int | None
    remedy: str
    """What a person can do if the job does not load or fails."""


class Worker:
    """One process; begins when it is first asked."""

    def __init__(self, task: WorkerSpec) -> None:
        self._task = task
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._num_deaths = 0

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """The values of all calls, None for those that broke a limit or the process."""
        values: list[Any] = []
        while len(values) < len(calls):
            process = self._process or self._start()
            rest = calls[len(values) :]
            replies = self._ask(process, rest)
            for call, reply in zip(rest, replies, strict=False):
                self._check(call, reply)
            values += [reply["value"] for reply in replies]
            self._num_deaths = 0 if replies else self._num_deaths
            if len(replies) < len(rest):
                self._restart_error(process, rest[len(replies)])
                values.append(None)
        return values

    def check(self) -> None:
        if self._process is None:
            self._start()

    def close(self) -> None:
        """Ends the process and what it started."""
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None, "both are pipes"
            with suppress(BrokenPipeError):
                pipe.close()
        process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sets iterate alike in every worker
            start_new_session=True,  # Ctrl-C is for the parent, which ends its workers
        )
        task = self._task
        begin = {
            "kind": task.kind,
            "settings": json.loads(task.settings),
            "seconds": task.seconds,
            "memory_bytes": task.memory_bytes,
            "path": [*sys.path, os.getcwd()],
        }
        self._send(process, begin)
        reply = self._reply(process, _START_SECONDS)
        if reply is None or "error" in reply:
            self.close()
            told = reply["error"] if reply else "it ended before it was ready"
            raise ValueError(f"a verifier could not be loaded: {told.strip()}\n{task.remedy}")
        return process

    def _ask(self, process: subprocess.Popen[bytes], calls: Sequence[Call]) -> list[dict[str, Any]]:
        """The replies until the process ended or took too long."""
        self._send(process, calls)
        patience = NUM_WAITING * self._task.seconds + _GRACE_SECONDS
        replies: list[dict[str, Any]] = []
        while len(replies) < len(calls):
            reply = self._reply(process, patience)
            if reply is None:
                break
            replies.append(reply)
        return replies

    def _send(self, process: subprocess.Popen[bytes], message: object) -> None:
        assert process.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # then there is no reply either
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()

    def _reply(self, process: subprocess.Popen[bytes], patience: float) -> dict[str, Any] | None:
        """The next line of the process; None where it ended or let us wait for too long."""
        assert process.stdout is not None, "it is a pipe"
        deadline = monotonic() + patience
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - monotonic()))
            found = os.read(process.stdout.fileno(), 2**16) if ready else b""
            if not found:
                return None
            self._buffer += found
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _check(self, call: Call, reply: dict[str, Any]) -> None:
        if "error" in reply:
            raise ValueError(
                f"a verifier failed on {_shown(call)}: {reply['error'].strip()}\n"
                f"{self._task.remedy}"
            )

    def _restart_error(self, process: subprocess.Popen[bytes], call: Call) -> None:
        """Clears away a process that did not answer a call."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)  # still there: it waited beyond all limits
        code = process.poll()
        self.close()
        is_limit = code in (None, -signal.SIGPROF, -signal.SIGALRM)
        self._num_deaths = 0 if is_limit else self._num_deaths + 1
        if self._num_deaths >= MAX_DEATHS:
            raise ValueError(
                f"a verifier must survive its calls: got {MAX_DEATHS} in a row that ended its "
                f"process (exit code {code}), the last one on {_shown(call)}. {self._task.remedy}"
            )


class Pool:
    """Workers for one task; a large batch is shared among them."""

    def __init__(self, task: WorkerSpec, num_workers: int) -> None:
        self._workers = [Worker(task) for _ in range(num_workers)]
        self._idle: LifoQueue[Worker] = LifoQueue()
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """The values in the order of the calls; equal calls are made once."""
        distinct = list(dict.fromkeys(calls))
        chunks = [distinct[i : i + NUM_CALLS] for i in range(0, len(distinct), NUM_CALLS)]
        if len(chunks) < 2:
            found = [self._run(chunk) for chunk in chunks]
        else:
            with ThreadPoolExecutor(min(len(chunks), len(self._workers))) as threads:
                found = list(threads.map(self._run, chunks))
        values = dict(zip(distinct, chain.from_iterable(found), strict=True))
        return [values[call] for call in calls]

    def check(self) -> None:
        """Refuses a task that cannot be loaded, before anything depends on it."""
        self._workers[0].check()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _run(self, chunk: Sequence[Call]) -> list[Any]:
        worker = self._idle.get()
        try:
            return worker.run(chunk)
        except BaseException:
            worker.close()  # what it still answers belongs to no call
            raise
        finally:
            self._idle.put(worker)


@cache
def pool_for(task: WorkerSpec) -> Pool:
    """The workers for a task, the same for all who ask; they end with this process."""
    pool = Pool(task, min(os.cpu_count() or 1, MAX_WORKERS))
    atexit.register(pool.close)
    return pool


os.register_at_fork(after_in_child=pool_for.cache_clear)


def _shown(call: Call) -> str:
    """A call's texts, by their ends."""
    return ", ".join(
        f"{text[:20]!r} ... {text[-60:]!r}" if len(text) > 80 else repr(text)
        for text in map(str, call)
    )

"""Worker processes that answer calls within limits of time and memory.

A call that exceeds a limit returns None, and its worker is replaced.
"""

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
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from queue import LifoQueue
from time import monotonic
from typing import Any

from copd.verifiers.child import NUM_WAITING

CHILD = Path(__file__).with_name("child.py")

NUM_CALLS = 32
"""Calls sent to a worker at once; a larger batch is shared among workers."""

MAX_WORKERS = 8
MAX_DEATHS = 16
"""Calls in a row that may kill their worker before this is an error."""

_START_SECONDS = 300.0
_GRACE_SECONDS = 5.0

Call = tuple[Any, ...]


@dataclass(frozen=True)
class WorkerSpec:
    """What workers run, and the limits of a call."""

    kind: str
    """Key of `HANDLERS` in the child."""
    settings: str
    """Arguments of the handler as JSON."""
    seconds: float
    """Processor time of a call."""
    memory_bytes: int | None
    remedy: str
    """What the user can do if the handler cannot be loaded or fails."""


class Worker:
    """One worker process; it starts at its first call."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._num_deaths = 0

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Return the values of all calls; None for one that broke a limit or the process."""
        values: list[Any] = []
        while len(values) < len(calls):
            process = self._process or self._start()
            rest = calls[len(values) :]
            replies = self._request(process, rest)
            for call, reply in zip(rest, replies, strict=False):
                if "error" in reply:
                    raise ValueError(
                        f"a verifier failed on {_shortened(call)}: {reply['error'].strip()}\n"
                        f"{self._spec.remedy}"
                    )
            values += [reply["value"] for reply in replies]
            self._num_deaths = 0 if replies else self._num_deaths
            if len(replies) < len(rest):
                self._discard(process, rest[len(replies)])
                values.append(None)
        return values

    def check(self) -> None:
        """Start the process if there is none, which fails if its handler cannot be loaded."""
        if self._process is None:
            self._start()

    def close(self) -> None:
        """Kill the process and all processes it started."""
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
            start_new_session=True,  # Ctrl-C goes to the parent, which ends its workers
        )
        self._send(process, asdict(self._spec) | {"path": [*sys.path, os.getcwd()]})
        reply = self._reply(process, _START_SECONDS)
        if reply is None or "error" in reply:
            self.close()
            reason = reply["error"] if reply else "it ended before it was ready"
            raise ValueError(
                f"a verifier could not be loaded: {reason.strip()}\n{self._spec.remedy}"
            )
        return process

    def _request(
        self, process: subprocess.Popen[bytes], calls: Sequence[Call]
    ) -> list[dict[str, Any]]:
        """Send calls; return the replies until the process ends or takes too long."""
        self._send(process, calls)
        limit = NUM_WAITING * self._spec.seconds + _GRACE_SECONDS
        replies: list[dict[str, Any]] = []
        while len(replies) < len(calls):
            reply = self._reply(process, limit)
            if reply is None:
                break
            replies.append(reply)
        return replies

    def _send(self, process: subprocess.Popen[bytes], message: object) -> None:
        assert process.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # then there is no reply either
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()

    def _reply(self, process: subprocess.Popen[bytes], limit: float) -> dict[str, Any] | None:
        """Read the next line; None if the process ended or took more than `limit` seconds."""
        assert process.stdout is not None, "it is a pipe"
        deadline = monotonic() + limit
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - monotonic()))
            found = os.read(process.stdout.fileno(), 2**16) if ready else b""
            if not found:
                return None
            self._buffer += found
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _discard(self, process: subprocess.Popen[bytes], call: Call) -> None:
        """Close a process that did not answer a call; raise if this happens again and again."""
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)  # still running if it exceeded the time limit by waiting
        code = process.poll()
        self.close()
        is_limit = code in (None, -signal.SIGPROF, -signal.SIGALRM)
        self._num_deaths = 0 if is_limit else self._num_deaths + 1
        if self._num_deaths >= MAX_DEATHS:
            raise ValueError(
                f"a verifier must survive its calls: got {MAX_DEATHS} in a row that ended its "
                f"process (exit code {code}), the last one on {_shortened(call)}. "
                f"{self._spec.remedy}"
            )


class Pool:
    """Workers of one kind, which share large batches of calls."""

    def __init__(self, spec: WorkerSpec, num_workers: int) -> None:
        self._workers = [Worker(spec) for _ in range(num_workers)]
        self._idle: LifoQueue[Worker] = LifoQueue()
        for worker in reversed(self._workers):
            self._idle.put(worker)

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """Return the values in the order of the calls; equal calls are made once."""
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
        """Raise ValueError if the handler cannot be loaded."""
        self._workers[0].check()

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def _run(self, chunk: Sequence[Call]) -> list[Any]:
        worker = self._idle.get()
        try:
            return worker.run(chunk)
        except BaseException:
            worker.close()  # replies that are still to come belong to no call
            raise
        finally:
            self._idle.put(worker)


@cache
def pool_for(spec: WorkerSpec) -> Pool:
    """Return the pool of a spec, the same for all callers; it ends with this process."""
    pool = Pool(spec, min(os.cpu_count() or 1, MAX_WORKERS))
    atexit.register(pool.close)
    return pool


os.register_at_fork(after_in_child=pool_for.cache_clear)


def _shortened(call: Call) -> str:
    """Show the arguments of a call; long ones by their start and end."""
    return ", ".join(
        f"{text[:20]!r} ... {text[-60:]!r}" if len(text) > 80 else repr(text)
        for text in map(str, call)
    )

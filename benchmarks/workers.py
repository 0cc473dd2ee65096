"""The parent's end of a worker: a side of a case in a process of its own. Measures nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cases import Case
from benchmarks.ratios import Answer


class WorkerEnded(RuntimeError):
    """A worker is gone; what it said last is on stderr."""


@dataclass
class Worker:
    """A side of a case, alive and waiting; ended on leaving its context."""

    side: str
    case: Case
    folder: Path
    threads: int
    micro_batch: int = 0
    ready: dict[str, Any] = field(default_factory=dict)
    """What it says when its model is loaded."""

    def __post_init__(self) -> None:
        words = [self.side, self.case.name, str(self.folder), f"--micro-batch={self.micro_batch}"]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.stop()

    def stop(self) -> None:
        """Its process ends, and its memory is free; a second time does nothing."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.communicate(json.dumps({"stop": True}) + "\n")

    def wait(self) -> None:
        """Until it is ready."""
        self.ready = self._receive()

    def take(self, step: int, *, count_flops: bool = False) -> Answer:
        """One step, measured."""
        assert self._process.stdin is not None, "opened as a pipe"
        message = json.dumps({"step": step, "count_flops": count_flops})
        with suppress(BrokenPipeError):  # where it has ended, reading says so
            print(message, file=self._process.stdin, flush=True)
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "opened as a pipe"
        line = self._process.stdout.readline()
        if not line:
            raise WorkerEnded(
                f"the {self.side} worker of case {self.case.name} ended with exit code "
                f"{self._process.wait()}: see above for why."
            )
        return json.loads(line)


def start(
    stack: ExitStack, sides: Sequence[tuple[str, int]], case: Case, folder: Path, threads: int
) -> list[Worker]:
    """Workers for these sides and sizes of micro-batches, loaded side by side, then all waiting."""
    workers = [
        stack.enter_context(Worker(side, case, folder, threads, size)) for side, size in sides
    ]
    for worker in workers:
        worker.wait()
    return workers

"""One side of one case in its own process, seen from the parent and from within."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

from benchmarks import floor, ours, repeated, steps
from benchmarks.cases import Case
from benchmarks.ratios import Answer
from benchmarks.turns import Turns

_SIDES = {
    "ours": ours.take_turns,
    "parts": ours.take_turns_in_parts,
    "repeated": repeated.take_turns,
    "matmul": floor.take_turns,
    "steps": steps.take_turns,
}


class WorkerEnded(RuntimeError):
    """A worker has ended; the reason is on stderr."""


class Worker:
    """A side of a case in a running process, which ends with the context."""

    ready: dict[str, Any]
    """The worker's message after its model is loaded."""

    def __init__(
        self, side: str, case: Case, folder: Path, threads: int, micro_batch: int = 0
    ) -> None:
        self.side, self.case, self.micro_batch = side, case, micro_batch
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        arguments = (child, side, case, folder, micro_batch)
        self._process = context.Process(target=run, args=arguments, daemon=True)
        with patch.dict(os.environ, OMP_NUM_THREADS=str(threads)):
            self._process.start()
        child.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._process.kill()
        self.stop()

    def stop(self) -> None:
        """End the process and free its memory; a second call does nothing."""
        with suppress(OSError):
            self._connection.send(None)
        self._process.join()

    def wait(self) -> None:
        """Wait until the worker is ready."""
        self.ready = self._receive()

    def take(self, step: int, *, count_flops: bool = False) -> Answer:
        """Take one step and return its measurements."""
        with suppress(OSError):  # receiving reports that the worker has ended
            self._connection.send({"step": step, "count_flops": count_flops})
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerEnded(
                f"the {self.side} worker of case {self.case.name} ended with exit code "
                f"{self._process.exitcode}: see above for the reason."
            ) from None


def start(
    stack: ExitStack, sides: Sequence[tuple[str, int]], case: Case, folder: Path, threads: int
) -> list[Worker]:
    """Start a worker per side and micro-batch size, and wait until all are ready."""
    workers = [
        stack.enter_context(Worker(side, case, folder, threads, size)) for side, size in sides
    ]
    for worker in workers:
        worker.wait()
    return workers


def run(parent: Connection, side: str, case: Case, folder: Path, micro_batch: int) -> None:
    """Take turns as a side until the parent stops them."""
    warnings.simplefilter("ignore")
    if side == "trl":
        from benchmarks import trl_side  # needs the extra `bench`, and is slow to import

        take_turns = trl_side.take_turns
    else:
        take_turns = _SIDES[side]
    take_turns(case, folder, Turns(parent), micro_batch=micro_batch)

"""Runs the jobs of a study side by side, each in a process of its own. Knows no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from copd.lab.compare.jobs import Job
from copd.lab.compare.progress import checkpoint_folder, is_done

LOG = "log.txt"
_PAUSE = 0.2
"""Seconds between looks."""

_PATIENCE = 20.0
"""Seconds until a job that was asked to end is killed."""


class View(Protocol):
    """What is told while jobs go on."""

    def started(self, job: Job) -> None: ...

    def ended(self, job: Job, reason: str | None) -> None:
        """`reason` is why it failed, None if it did not."""
        ...

    def look(self, running: Sequence[Job]) -> None:
        """Called several times a second."""
        ...


@dataclass
class Scheduler:
    """Jobs that wait, run and have failed; the files on disk say which are done."""

    study: Path
    jobs: Sequence[Job]
    slots: int
    view: View
    failed: dict[str, str] = field(default_factory=dict)
    """Name of a job to why it failed."""
    _running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = field(default_factory=dict)

    def run(self) -> dict[str, str]:
        """Returns what failed; ends its processes if it is interrupted."""
        waiting = [job for job in self.jobs if not is_done(job)]
        try:
            while waiting or self._running:
                waiting = self._start(waiting)
                self._reap()
                self.view.look([job for job, _ in self._running.values()])
                time.sleep(_PAUSE)
        finally:
            self._stop()
        return self.failed

    def _start(self, waiting: list[Job]) -> list[Job]:
        """Starts what can start, in order; returns what has to wait."""
        rest = []
        for job in waiting:
            leader = self._leader(job)
            if leader is not None and leader.name in self.failed:
                self._fail(job, f"not started, because {leader.name} failed, which it builds on")
            elif leader is None and len(self._running) < self.slots:
                self._running[job.name] = job, self._spawn(job)
                self.view.started(job)
            else:
                rest.append(job)
        return rest

    def _leader(self, job: Job) -> Job | None:
        """The job whose checkpoint this one waits for."""
        start = job.start
        if start is None or checkpoint_folder(job, start.step).exists():
            return None
        leader = next(j for j in self.jobs if (j.method, j.seed) == (start.method, job.seed))
        ready = checkpoint_folder(leader, start.step).exists() or is_done(leader)
        return None if ready else leader

    def _spawn(self, job: Job) -> subprocess.Popen[bytes]:
        job.root.mkdir(parents=True, exist_ok=True)
        threads = str(job.config.engine.num_threads or 1)
        words = [sys.executable, "-m", "copd.lab.compare.process", str(self.study), job.method]
        with (job.root / LOG).open("ab") as log:
            return subprocess.Popen(
                [*words, str(job.seed)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": threads},
                start_new_session=True,  # an interrupt in the terminal is the scheduler's to handle
            )

    def _reap(self) -> None:
        for name, (job, process) in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[name]
            assert process.stdin is not None, "made as a pipe"
            process.stdin.close()
            if process.returncode == 0 and is_done(job):
                self.view.ended(job, None)
            else:
                self._fail(job, _last_words(job.root / LOG, process.returncode))

    def _fail(self, job: Job, reason: str) -> None:
        self.failed[job.name] = reason
        self.view.ended(job, reason)

    def _stop(self) -> None:
        """Closes the pipes, at whose end a job ends; what does not listen is killed."""
        for _, process in self._running.values():
            assert process.stdin is not None, "made as a pipe"
            with suppress(OSError):
                process.stdin.close()
        deadline = time.monotonic() + _PATIENCE
        for _, process in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


def _last_words(log: Path, code: int, *, num_lines: int = 5) -> str:
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:]
    return "\n".join([f"{how}; the end of {log}:", *(f"  {line}" for line in lines)])

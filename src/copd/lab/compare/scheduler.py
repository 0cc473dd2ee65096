"""Run the jobs of a study side by side, each in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from copd.lab.compare.jobs import Job, find_job
from copd.lab.compare.progress import checkpoint_folder, is_done
from copd.lab.compare.view import StudyView

LOG = "log.txt"
_POLL_SECONDS = 0.2
_STOP_SECONDS = 20.0
"""Time for a job to exit after its pipe is closed; then it is killed."""


@dataclass
class Scheduler:
    """Starts jobs in order as slots become free; the files on disk say which are done."""

    study: Path
    jobs: Sequence[Job]
    slots: int
    view: StudyView
    failed: dict[str, str] = field(default_factory=dict)
    """Name of a job to why it failed."""
    _running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = field(default_factory=dict)

    def run(self) -> dict[str, str]:
        """Run all jobs and return the failed ones; stop their processes if interrupted."""
        waiting = [job for job in self.jobs if not is_done(job)]
        try:
            while waiting or self._running:
                waiting = self._start(waiting)
                self._collect()
                self.view.refresh([job for job, _ in self._running.values()])
                time.sleep(_POLL_SECONDS)
        finally:
            self._stop()
        return self.failed

    def _start(self, waiting: list[Job]) -> list[Job]:
        """Start what can start, in order; return what has to wait."""
        rest = []
        for job in waiting:
            leader = self._unfinished_leader(job)
            if leader is not None and leader.name in self.failed:
                self._fail(job, f"not started, because {leader.name} failed, which it builds on")
            elif leader is None and len(self._running) < self.slots:
                self._running[job.name] = job, self._spawn(job)
                self.view.started(job)
            else:
                rest.append(job)
        return rest

    def _unfinished_leader(self, job: Job) -> Job | None:
        """Return the job whose checkpoint this one waits for."""
        if job.start is None or checkpoint_folder(job, job.start.step).exists():
            return None
        leader = find_job(self.jobs, job.start.method, job.seed)
        is_ready = checkpoint_folder(leader, job.start.step).exists() or is_done(leader)
        return None if is_ready else leader

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

    def _collect(self) -> None:
        """Take the processes that have exited off the running ones."""
        for name, (job, process) in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[name]
            process.communicate()  # closes the pipe
            if process.returncode == 0 and is_done(job):
                self.view.ended(job, None)
            else:
                self._fail(job, _end_of_log(job.root / LOG, process.returncode))

    def _fail(self, job: Job, reason: str) -> None:
        self.failed[job.name] = reason
        self.view.ended(job, reason)

    def _stop(self) -> None:
        """Close the pipes, so that the jobs exit; kill those that do not."""
        for _, process in self._running.values():
            try:
                process.communicate(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self._running.clear()


def _end_of_log(log: Path, code: int, *, num_lines: int = 5) -> str:
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-num_lines:]
    return "\n".join([f"{how}; the end of {log}:", *(f"  {line}" for line in lines)])

"""What a person sees while a study runs: a line per running job, and how long all will take."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from copd.config import BASE
from copd.lab.compare.jobs import Job
from copd.lab.compare.progress import steps_done, work, work_done

_EVERY = 1.0
"""Seconds between looks at the files."""


class StudyView:
    """On a terminal a live table, elsewhere a line whenever a job starts or ends."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self._console = console
        self._jobs = jobs
        self._total = sum(map(work, jobs))
        self._done = {job.name: work_done(job) for job in jobs}
        self._before = sum(self._done.values())
        self._started = time.monotonic()
        self._since: dict[str, float] = {}
        self._ended = sum(self._done[job.name] == work(job) for job in jobs)
        self._looked = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> StudyView:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, job: Job) -> None:
        """A line, where there is no table."""
        self._since[job.name] = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{job.name} started: {job.root}", soft_wrap=True)

    def ended(self, job: Job, reason: str | None) -> None:
        """A line in any case."""
        self._done[job.name] = work_done(job)
        self._ended += reason is None
        took = time.monotonic() - self._since.get(job.name, time.monotonic())
        how = f"done in {duration(took)}" if reason is None else f"failed: {reason}"
        line = f"{job.name} {how}"
        if reason is None:
            line += f"; {self._ended} of {len(self._jobs)} done, {self._remaining()}"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def look(self, running: Sequence[Job]) -> None:
        """Draws the table anew, at most once a second."""
        if not self._console.is_terminal or time.monotonic() - self._looked < _EVERY:
            return
        self._looked = time.monotonic()
        for job in running:
            self._done[job.name] = work_done(job)
        table = Table.grid(padding=(0, 2))
        for job in running:
            table.add_row(job.name, _progress(job), duration(self._looked - self._since[job.name]))
        summary = f"{self._ended} of {len(self._jobs)} jobs done, {self._remaining()}"
        self._live.update(Group(table, summary), refresh=True)

    def _remaining(self) -> str:
        """Judged by the pace since the start of this command."""
        done = sum(self._done.values())
        elapsed = time.monotonic() - self._started
        if done <= self._before:
            return "time left unknown yet"
        return f"about {duration((self._total - done) * elapsed / (done - self._before))} left"


def _progress(job: Job) -> str:
    if job.method == BASE:
        return "measuring"
    steps, total = steps_done(job), job.plan.total_steps
    return "measuring" if steps == total else f"step {steps}/{total}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes, or seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"

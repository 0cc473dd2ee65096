"""The display of a running study: a line per running job, and the time that is left."""

import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from copd.config import BASE
from copd.lab.compare.jobs import Job
from copd.lab.compare.progress import completions_done, steps_done, total_completions

_REFRESH_SECONDS = 1.0


class StudyView:
    """A live table on a terminal; elsewhere a line whenever a job starts or ends."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self._console = console
        self._jobs = jobs
        self._total = sum(map(total_completions, jobs))
        self._done = {job.name: completions_done(job) for job in jobs}
        self._done_before = sum(self._done.values())
        self._num_ended = sum(self._done[job.name] == total_completions(job) for job in jobs)
        self._began = time.monotonic()
        self._job_began: dict[str, float] = {}
        self._refreshed = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, job: Job) -> None:
        """Print a line where there is no table."""
        self._job_began[job.name] = time.monotonic()
        if not self._console.is_terminal:
            self._console.print(f"{job.name} started: {job.root}", soft_wrap=True)

    def ended(self, job: Job, reason: str | None) -> None:
        """Print a line in any case; `reason` says why the job failed."""
        self._done[job.name] = completions_done(job)
        now = time.monotonic()
        line = f"{job.name} failed: {reason}"
        if reason is None:
            self._num_ended += 1
            took = duration(now - self._job_began.get(job.name, now))
            line = f"{job.name} done in {took}; {self._num_ended} of {len(self._jobs)} done, "
            line += self._time_left()
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def refresh(self, running: Sequence[Job]) -> None:
        """Draw the table again, at most once a second."""
        now = time.monotonic()
        if not self._console.is_terminal or now - self._refreshed < _REFRESH_SECONDS:
            return
        self._refreshed = now
        table = Table.grid(padding=(0, 2))
        for job in running:
            self._done[job.name] = completions_done(job)
            table.add_row(job.name, _activity(job), duration(now - self._job_began[job.name]))
        summary = f"{self._num_ended} of {len(self._jobs)} jobs done, {self._time_left()}"
        self._live.update(Group(table, summary), refresh=True)

    def _time_left(self) -> str:
        """Extrapolate the pace since this command began."""
        done = sum(self._done.values())
        if done <= self._done_before:
            return "time left unknown yet"
        seconds = (time.monotonic() - self._began) / (done - self._done_before)
        return f"about {duration((self._total - done) * seconds)} left"


def duration(seconds: float) -> str:
    """Format a time in hours and minutes, in minutes, or in seconds."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _activity(job: Job) -> str:
    steps, total = steps_done(job), job.plan.total_steps
    return "measuring" if job.method == BASE or steps == total else f"step {steps}/{total}"

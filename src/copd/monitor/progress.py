"""The progress of a run on the console: a live view on a terminal, else a line every few steps."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from rich.console import Console
from rich.live import Live

from copd.monitor.history import History
from copd.monitor.view import Phase, RunView
from copd.types import Metrics

NUM_LINES = 20
"""Lines about steps where there is no terminal."""


class RunProgress:
    """A context manager around a whole run, from the base's evaluation to the last one.

    A thread draws the view once a second, which takes a few milliseconds of CPU time; steps and
    phases only record numbers.
    """

    def __init__(self, console: Console, title: str, history: History, overlap_k: int) -> None:
        self._console, self._history = console, history
        self._every = max(1, history.plan.total_steps // NUM_LINES)
        self._view = RunView(title, history, overlap_k)
        self._phase: Phase | None = None
        self._step_began = self._phase_began = time.monotonic()
        # with FORCE_COLOR a CI log claims to be a terminal, but only a real one can be redrawn
        self._is_live = console.is_interactive and console.file.isatty()
        self._live = Live(get_renderable=self._frame, console=console, refresh_per_second=1)

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def advance(self, line: Mapping[str, Any], seconds: float) -> None:
        """Record a finished step by its line of metrics.jsonl."""
        self._history.add(line, seconds)
        self._step_began = time.monotonic()
        step, total = line["step"], self._history.plan.total_steps
        if not self._is_live and (step % self._every == 0 or step == total):
            self._console.print(
                f"step {step:4d}/{total} {line['stage']:8s} {summary(line['branches'])}"
            )

    @contextmanager
    def phase(self, title: str, total: int, *, in_step: bool = False) -> Iterator[Callable]:
        """Show `total` parts of work outside sampling and learning; yield a call for each part."""
        if not self._is_live and not in_step:
            self._console.print(title)
        self._phase, self._phase_began = Phase(title, 0, total, in_step=in_step), time.monotonic()

        def part_done() -> None:
            if self._phase is not None:
                self._phase = replace(self._phase, done=self._phase.done + 1)

        try:
            yield part_done
        finally:
            self._phase = None
            if not in_step:
                self._step_began = time.monotonic()

    def _frame(self) -> RunView:
        """Return the view of this moment; a phase outside the steps does not count as step time."""
        now, phase = time.monotonic(), self._phase
        idle = 0.0 if phase and not phase.in_step else now - self._step_began
        if phase:
            phase = replace(phase, seconds=now - self._phase_began)
        return replace(self._view, idle_seconds=idle, phase=phase)


def summary(metrics: Mapping[str, Metrics]) -> str:
    """Return each branch's native accuracy and, with teachers, the mean overlap of the pairs."""
    shown, overlaps = [], []
    for branch, values in metrics.items():
        native = [values[key] for key in values if re.fullmatch("rlvr/.*/accuracy", key)]
        overlaps += [values[key] for key in values if key.endswith("/overlap")]
        if native:
            shown.append(f"{branch} {100 * sum(native) / len(native):3.0f} %")
    if overlaps:
        shown.append(f"overlap {sum(overlaps) / len(overlaps):.3f}")
    return "  ".join(shown)

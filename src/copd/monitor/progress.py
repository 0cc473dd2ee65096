"""What a person sees while a run goes on: a live view on a terminal, elsewhere a line every few
steps. Never changes what is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live

from copd.monitor.history import History
from copd.monitor.view import Phase, RunView
from copd.types import Metrics


class RunProgress:
    """A context manager around a whole run, from the base's evaluation to the last one.

    A thread draws the view once a second, which takes a few milliseconds of CPU time whatever the
    steps take; between frames steps and phases only leave numbers.
    """

    def __init__(
        self, console: Console, title: str, history: History, overlap_k: int, *, num_lines: int = 20
    ) -> None:
        self._console, self._history = console, history
        self._every = max(1, history.plan.total_steps // num_lines)
        self._view = RunView(title, history, overlap_k)
        self._phase: Phase | None = None
        self._step_began = self._phase_began = time.monotonic()
        # CI may claim to be a terminal by FORCE_COLOR; only a real one can be drawn upon
        self._is_live = console.is_interactive and console.file.isatty()
        self._live = Live(get_renderable=self._frame, console=console, refresh_per_second=1)

    def __enter__(self) -> RunProgress:
        if self._is_live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._live.stop()

    def advance(self, line: Mapping[str, Any], seconds: float) -> None:
        """One step is done; `line` is its line of metrics.jsonl."""
        self._history.add(line, seconds)
        self._step_began = time.monotonic()
        step, total = line["step"], self._history.plan.total_steps
        if not self._is_live and (step % self._every == 0 or step == total):
            self._console.print(
                f"step {step:4d}/{total} {line['stage']:8s} {summary(line['branches'])}"
            )

    @contextmanager
    def phase(
        self, title: str, total: int, *, in_step: bool = False
    ) -> Iterator[Callable[[], None]]:
        """Work of `total` parts besides sampling and learning; call what this gives after each."""
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
        """The view of this moment; in an evaluation before or after training no step goes on."""
        now, phase = time.monotonic(), self._phase
        idle = 0.0 if phase and not phase.in_step else now - self._step_began
        if phase:
            phase = replace(phase, seconds=now - self._phase_began)
        return replace(self._view, idle_seconds=idle, phase=phase)


def summary(metrics: Mapping[str, Metrics]) -> str:
    """Native accuracy of each branch and, where there are teachers, the mean overlap of pairs."""
    shown, overlaps = [], []
    for branch, values in metrics.items():
        native = [
            v for key, v in values.items() if key.startswith("rlvr/") and key.endswith("/accuracy")
        ]
        overlaps += [v for key, v in values.items() if key.endswith("/overlap")]
        if native:
            shown.append(f"{branch} {100 * sum(native) / len(native):3.0f} %")
    if overlaps:
        shown.append(f"overlap {sum(overlaps) / len(overlaps):.3f}")
    return "  ".join(shown)

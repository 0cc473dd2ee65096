"""What a person sees while a run goes on: a bar with rate and remaining time, and a line every few
steps."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from copd.run.step import Position
from copd.types import Metrics


class RunProgress:
    """A context manager around the training loop."""

    def __init__(self, console: Console, total: int, done: int, *, num_lines: int = 20) -> None:
        self._console = console
        self._every = max(1, total // num_lines)
        self._total = total
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, rate="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, position: Position, metrics: Mapping[str, Metrics], seconds: float) -> None:
        """One step is done."""
        step = position.step
        self._bar.update(
            self._task,
            completed=step,
            description=position.stage.name,
            rate=f"{seconds:.1f} s/step",
        )
        if step % self._every == 0 or step == self._total:
            self._console.print(
                f"step {step:4d}/{self._total} {position.stage.name:8s} {summary(metrics)}"
            )


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

"""A run drawn as text: history in, styled lines out. Knows no clock, no file and no training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from copd.monitor.glyphs import (
    ASCII,
    UNICODE,
    Glyphs,
    Values,
    bounds,
    clock,
    columns,
    count_text,
    fit,
    painted,
    seconds_text,
    signed,
    sparkline,
)
from copd.monitor.history import History, latest, rates, remaining, teaching_pairs, watched_actions
from copd.recipes import OPD, Action

STYLES = ("cyan", "magenta")
"""Of stages without and with teachers."""

NUMBERS = (8, 8, 9, 8)
"""Widths of the columns right of the chart: latest, change, entropy, length."""

LEAST_CHART = 18
"""A narrower chart takes the place of the last numbers."""

Names = dict[tuple[str, str], str]
"""Branch and action to what a row is called."""


@dataclass(frozen=True)
class Phase:
    """Work outside the steps, such as an evaluation."""

    title: str
    done: int
    total: int
    """Parts it has."""
    seconds: float = 0.0
    in_step: bool = False
    """Whether it is a part of a step's time."""


@dataclass(frozen=True)
class RunView:
    """A renderable: one run at one moment, as wide as the console and no higher."""

    title: str
    history: History
    overlap_k: int
    idle_seconds: float = 0.0
    """Since the last step ended."""
    phase: Phase | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.size.height
        glyphs = ASCII if options.ascii_only else UNICODE
        yield Text("\n", no_wrap=True).join(draw(self, options.max_width, height - 1, glyphs))


@dataclass(frozen=True)
class Sheet:
    """Where the columns are, and the characters in them."""

    label: int
    chart: int
    numbers: tuple[int, ...]
    glyphs: Glyphs

    def row(self, label: str | Text, chart: str | Text, cells: Sequence[str | Text] = ()) -> Text:
        """One line; without cells the chart may go on below the numbers."""
        cut = self.glyphs.cut
        line = Text(" ").append_text(fit(label, self.label, cut)).append("  ")
        line.append_text(fit(chart, self.chart + (0 if cells else sum(self.numbers)), cut))
        for cell, width in zip(cells, self.numbers, strict=False):
            text = cell if isinstance(cell, Text) else Text(cell)
            line.append(" " * (width - text.cell_len)).append_text(text)
        line.rstrip()
        return line

    def parts(self, label: str, parts: Sequence[Text]) -> Text:
        """One line of as many parts as there is room for."""
        room, line = self.chart + sum(self.numbers), Text()
        for part in parts:
            gap = "   " if line else ""
            if line.cell_len + len(gap) + part.cell_len > room:
                break
            line.append(gap).append_text(part)
        return self.row(label, line)


def draw(view: RunView, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """The lines of the view; where the height is short blank lines leave first, then pairs."""
    plan = view.history.plan
    watched, pairs = watched_actions(plan), teaching_pairs(plan)
    names = _names(watched, glyphs) | _names(pairs, glyphs)
    sheet = _sheet(width, ["overlap@10", *names.values()], glyphs)
    parts = [
        [_title(view, width, glyphs), _now(view, sheet), _strip(view.history, sheet)],
        _rewards(view.history, sheet, watched, names),
        [],
        [_time(view, sheet), _rates(view.history, sheet), _cost(view.history, sheet)],
    ]
    room = height - sum(map(len, parts))
    if pairs:
        parts[2] = _overlaps(view, sheet, pairs, names, max(1, room - 1))
    spare = room - len(parts[2])
    lines: list[Text] = []
    for part in filter(None, parts):
        lines += [Text()] if lines and spare > 0 else []
        spare -= bool(lines)
        lines += part
    return lines[: max(1, height)]


def _sheet(width: int, names: Sequence[str], glyphs: Glyphs) -> Sheet:
    label = min(max(map(len, names)), max(10, width // 4))
    numbers = NUMBERS
    while len(numbers) > 1 and width - label - 4 - sum(numbers) < LEAST_CHART:
        numbers = numbers[:-1]
    return Sheet(label, max(4, width - label - 4 - sum(numbers)), numbers, glyphs)


def _names(actions: Sequence[Action], glyphs: Glyphs) -> Names:
    """As short as each can be and still differ from the others."""
    short = [
        f"{a.branch} {glyphs.arrow} {a.teacher}" if isinstance(a, OPD) else a.branch
        for a in actions
    ]
    return {
        (a.branch, a.key): name if short.count(name) == 1 else f"{name} {a.domain}"
        for a, name in zip(actions, short, strict=True)
    }


def _title(view: RunView, width: int, glyphs: Glyphs) -> Text:
    right = f"{view.history.done} of {view.history.plan.total_steps} steps"
    line = fit(Text(f" {view.title}", style="bold"), width - len(right) - 2, glyphs.cut)
    return line.append(f" {right}", style="not bold")


def _now(view: RunView, sheet: Sheet) -> Text:
    """What goes on: the phase, or the stage of the next step."""
    if view.phase is not None:
        return sheet.row("now", _phase(view.phase, sheet.glyphs))
    plan, done = view.history.plan, view.history.done
    if done == plan.total_steps:
        return sheet.row("now", "trained")
    index, step = plan.locate(done)
    stage = plan.stages[index]
    alike = [i for i, other in enumerate(plan.stages) if other.name == stage.name]
    line = Text().append(stage.name, style=f"bold {_style(stage.actions)}")
    if len(alike) > 1:
        line.append(f"   round {alike.index(index) + 1} of {len(alike)}")
    return sheet.row("now", line.append(f"   step {step + 1} of {stage.steps}"))


def _phase(phase: Phase, glyphs: Glyphs) -> Text:
    filled = phase.done * 12 // phase.total
    line = Text().append(phase.title, style="bold")
    line.append("   ").append(glyphs.done[0] * filled, style="bold")
    line.append(glyphs.ahead[0] * (12 - filled), style="bright_black")
    return line.append(f" {phase.done} of {phase.total}   {clock(phase.seconds)}")


def _strip(history: History, sheet: Sheet) -> Text:
    """The plan from left to right, in the columns of the charts below it."""
    plan, glyphs = history.plan, sheet.glyphs
    taught = np.repeat([_is_taught(s.actions) for s in plan.stages], [s.steps for s in plan.stages])
    done = -(-history.done * sheet.chart // plan.total_steps)  # as far as the charts are drawn
    kinds = [int(share >= 0.5) for share in columns(taught.astype(np.float64), sheet.chart)]
    marks = [(glyphs.done[kind], STYLES[kind]) for kind in kinds[:done]]
    marks += [(glyphs.ahead[kind], "bright_black") for kind in kinds[done:]]
    return sheet.row("stages", painted(marks), [f"{100 * history.done // plan.total_steps} %"])


def _rewards(history: History, sheet: Sheet, actions: Sequence[Action], names: Names) -> list[Text]:
    """A headline with the range of all charts, and a row per native batch."""
    metric = "reward" if history.is_graded else "accuracy"
    scale, unit, digits = (1, "", 2) if history.is_graded else (100, " %", 0)
    series = [scale * history.of(action, metric) for action in actions]
    shares = [columns(values, sheet.chart) for values in series]
    low, high = bounds(shares, 0.2 * scale)
    span = "" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}{unit}"
    titles = [Text(title, style="dim") for title in ("latest", "change", "entropy", "length")]
    lines = [sheet.row(Text(metric, style="bold"), Text(span, style="dim"), titles)]
    for action, values, share in zip(actions, series, shares, strict=True):
        cells = [
            *_latest(values, digits, unit),
            _latest(history.of(action, "entropy"), 2)[0],
            _latest(history.of(action, "length"), 1)[0],
        ]
        chart = sparkline(share, low, high, sheet.glyphs, STYLES[0])
        lines.append(sheet.row(names[action.branch, action.key], chart, cells))
    return lines


def _overlaps(
    view: RunView, sheet: Sheet, pairs: Sequence[OPD], names: Names, room: int
) -> list[Text]:
    """A headline and a row per taught pair; those for which there is no room share one line."""
    series = [view.history.of(pair, "overlap") for pair in pairs]
    shares = [columns(values, sheet.chart) for values in series]
    low, high = bounds(shares, 0.05)
    span = "" if math.isnan(low) else f"{low:.2f} to {high:.2f}"
    title = Text(f"overlap@{view.overlap_k}", style="bold")
    lines = [sheet.row(title, Text(span, style="dim"), [""])]
    shown = len(pairs) if len(pairs) <= room else max(0, room - 1)
    for pair, values, share in list(zip(pairs, series, shares, strict=True))[:shown]:
        chart = sparkline(share, low, high, sheet.glyphs, STYLES[1])
        lines.append(sheet.row(names[pair.branch, pair.key], chart, _latest(values, 3)))
    if shown < len(pairs):
        rest = [now.value for values in series[shown:] if (now := latest(values))]
        text = f"{len(pairs) - shown} more pairs" + (f", lowest {min(rest):.3f}" if rest else "")
        lines.append(sheet.row("", Text(text, style="dim")))
    return lines


def _latest(values: Values, digits: int, unit: str = "") -> list[str | Text]:
    """The latest value and its change since the beginning, as far as they are known."""
    now = latest(values)
    if now is None:
        return ["", ""]
    change = "" if now.change is None else signed(now.change, digits)
    return [f"{now.value:.{digits}f}{unit}", change]


def _time(view: RunView, sheet: Sheet) -> Text:
    history = view.history
    parts = [Text(clock(history.elapsed + view.idle_seconds)).append(" elapsed", style="dim")]
    if history.done < history.plan.total_steps and (left := remaining(history)) is not None:
        parts.append(Text(clock(max(0.0, left - view.idle_seconds))).append(" left", style="dim"))
    return sheet.parts("time", parts)


def _rates(history: History, sheet: Sheet) -> Text:
    """Of each kind of stage, in its colour: what the colours of the strip mean is told here."""
    styles = {stage.name: _style(stage.actions) for stage in history.plan.stages}
    parts = [
        Text().append(kind, style=styles[kind]).append(f" {seconds_text(seconds)}")
        for kind, seconds in rates(history).items()
    ]
    return sheet.parts("per step", parts)


def _cost(history: History, sheet: Sheet) -> Text:
    """Sums over the branches so far."""
    counts = {"sampled_tokens": "tokens sampled", "scored_tokens": "scored", "steps": "updates"}
    totals = {key: sum(own[key] for own in history.cost.values()) for key in counts}
    parts = [
        Text(count_text(totals[key])).append(f" {name}", style="dim")
        for key, name in counts.items()
    ]
    return sheet.parts("cost", parts)


def _is_taught(actions: Sequence[Action]) -> bool:
    return any(isinstance(action, OPD) for action in actions)


def _style(actions: Sequence[Action]) -> str:
    return STYLES[_is_taught(actions)]

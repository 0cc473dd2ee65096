"""The live view of a run: styled lines drawn from its history."""

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
"""Colours of stages without and with teachers."""

NUMBERS = (8, 8, 9, 8)
"""Widths of the columns right of the chart: latest, change, entropy, length."""

LEAST_CHART = 18
"""Width of the chart below which the last columns of numbers are left out."""

Names = dict[tuple[str, str], str]
"""Branch and action key to the label of a row."""


@dataclass(frozen=True)
class Phase:
    """Work besides sampling and learning, such as an evaluation."""

    title: str
    done: int
    total: int
    """Number of parts."""
    seconds: float = 0.0
    in_step: bool = False
    """Whether its time is part of a step's."""


@dataclass(frozen=True)
class RunView:
    """A renderable of one run at one moment that fits the console."""

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
    """Widths of the columns, and the characters to draw them with."""

    label: int
    chart: int
    numbers: tuple[int, ...]
    glyphs: Glyphs

    def row(self, label: str | Text, chart: str | Text, cells: Sequence[str | Text] = ()) -> Text:
        """Return one line; without cells, the chart may extend below the numbers."""
        cut = self.glyphs.cut
        line = Text(" ").append_text(fit(label, self.label, cut)).append("  ")
        line.append_text(fit(chart, self.chart + (0 if cells else sum(self.numbers)), cut))
        for cell, width in zip(cells, self.numbers, strict=False):
            text = cell if isinstance(cell, Text) else Text(cell)
            line.append(" " * (width - text.cell_len)).append_text(text)
        line.rstrip()
        return line

    def parts(self, label: str, parts: Sequence[Text]) -> Text:
        """Return one line with as many of the parts as fit."""
        room, line = self.chart + sum(self.numbers), Text()
        for part in parts:
            gap = "   " if line else ""
            if line.cell_len + len(gap) + part.cell_len > room:
                break
            line.append(gap).append_text(part)
        return self.row(label, line)


def draw(view: RunView, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """Return the lines of the view; a low console loses blank lines first, then pairs."""
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
    """Label the actions without their domains, where that is unique."""
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
    """Show the phase, or the stage of the next step."""
    plan, done = view.history.plan, view.history.done
    line = Text()
    if (phase := view.phase) is not None:
        filled = phase.done * 12 // phase.total
        line.append(phase.title, style="bold").append("   ")
        line.append(sheet.glyphs.done[0] * filled, style="bold")
        line.append(sheet.glyphs.ahead[0] * (12 - filled), style="bright_black")
        line.append(f" {phase.done} of {phase.total}   {clock(phase.seconds)}")
    elif done == plan.total_steps:
        line.append("trained")
    else:
        index, step = plan.locate(done)
        stage = plan.stages[index]
        alike = [i for i, other in enumerate(plan.stages) if other.name == stage.name]
        line.append(stage.name, style=f"bold {STYLES[_has_teachers(stage.actions)]}")
        if len(alike) > 1:
            line.append(f"   round {alike.index(index) + 1} of {len(alike)}")
        line.append(f"   step {step + 1} of {stage.steps}")
    return sheet.row("now", line)


def _strip(history: History, sheet: Sheet) -> Text:
    """Draw the plan from left to right, aligned with the charts below it."""
    plan, glyphs = history.plan, sheet.glyphs
    taught = [float(_has_teachers(s.actions)) for s in plan.stages for _ in range(s.steps)]
    done = -(-history.done * sheet.chart // plan.total_steps)  # rounded up, as in the charts
    kinds = [int(share >= 0.5) for share in columns(np.array(taught), sheet.chart)]
    marks = [(glyphs.done[kind], STYLES[kind]) for kind in kinds[:done]]
    marks += [(glyphs.ahead[kind], "bright_black") for kind in kinds[done:]]
    return sheet.row("stages", painted(marks), [f"{100 * history.done // plan.total_steps} %"])


def _rewards(history: History, sheet: Sheet, actions: Sequence[Action], names: Names) -> list[Text]:
    """Draw a heading with the range of all charts, and a row per action."""
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
    """Draw a heading and a row per pair; pairs without room share one line."""
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
    """Format the latest value and its change since the start; empty where unknown."""
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
    """Show the time of each kind of stage in its colour, which makes it the strip's legend."""
    styles = {stage.name: STYLES[_has_teachers(stage.actions)] for stage in history.plan.stages}
    parts = [
        Text().append(kind, style=styles[kind]).append(f" {seconds_text(seconds)}")
        for kind, seconds in rates(history).items()
    ]
    return sheet.parts("per step", parts)


def _cost(history: History, sheet: Sheet) -> Text:
    """Show sums over the branches so far."""
    counts = {"sampled_tokens": "tokens sampled", "scored_tokens": "scored", "steps": "updates"}
    totals = {name: sum(own[key] for own in history.cost.values()) for key, name in counts.items()}
    parts = [Text(count_text(n)).append(f" {name}", style="dim") for name, n in totals.items()]
    return sheet.parts("cost", parts)


def _has_teachers(actions: Sequence[Action]) -> bool:
    return any(isinstance(action, OPD) for action in actions)

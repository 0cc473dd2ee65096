"""The figures of paper/results.md as SVG. Knows matplotlib and numbers, no claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import RcKeyType

from copd.lab.study import Summary
from copd.lab.study.pilot import Correlation, Point
from copd.lab.study.results import OVERALL
from copd.monitor.results import Estimate
from paper.load import Curve, over_seeds
from paper.measures import COUPLED, QUANTITIES

matplotlib.use("svg")
_STYLE: dict[RcKeyType, Any] = {
    "svg.hashsalt": "copd",  # the same numbers give the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Okabe and Ito's, which the colour-blind can tell apart."""


def save(path: Path, draw: Callable[[Figure], None], *, size: tuple[float, float]) -> None:
    """One figure to one file."""
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        draw(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None}, facecolor="white")
        plt.close(figure)


def accuracies(figure: Figure, studies: Mapping[str, Summary]) -> None:
    """Accuracy of methods overall, with intervals, and on every domain; a panel per study.

    The base is in the title. Branches alone are left out.
    """
    panels = figure.subplots(1, len(studies), squeeze=False)[0]
    for axes, (title, summary) in zip(panels, studies.items(), strict=True):
        columns = [c for c in summary.columns if c != summary.base and ": branch " not in c]
        domains = [row.name for row in summary.main_rows if row.name != OVERALL]
        places = np.arange(len(columns))[::-1]
        for colour, domain in zip(_COLOURS[1:], domains, strict=False):
            means = [100 * summary.cells[domain, column].mean for column in columns]
            style = {"color": colour, "markersize": 8, "markeredgewidth": 2}
            axes.plot(means, places, "|", label=domain, **style)
        cells = [summary.cells[OVERALL, column] for column in columns]
        _points(axes, [c.mean for c in cells], places, cells, along="x")
        axes.set_yticks(places, columns)
        axes.set_xlabel("accuracy, % (dots: overall)")
        base = f", base {summary.cells[OVERALL, summary.base]}" if summary.base else ""
        axes.set_title(title + base)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def sweep(figure: Figure, summary: Summary, *, label: str) -> None:
    """Overall accuracy of every column, in their order, which is that of a setting."""
    axes = figure.subplots()
    columns = summary.trained
    cells = [summary.cells[OVERALL, column] for column in columns]
    places = np.arange(len(columns))
    _points(axes, [c.mean for c in cells], places, cells, along="y")
    axes.set_xticks(places, columns)
    axes.set_xlabel(label)
    axes.set_ylabel("overall accuracy, %")


def lines(axes: Axes, curves: Mapping[str, Curve], *, window: int = 1) -> None:
    """Means over seeds with Student's intervals; of `window` steps where single ones are noisy.

    A curve with fewer steps than that is left out.
    """
    for colour, (label, own) in zip(_COLOURS, curves.items(), strict=False):
        if len(own) < window:
            continue
        kernel = np.ones(window) / window
        values = np.array([*own.values()]).T
        smooth = np.array([np.convolve(seed, kernel, mode="valid") for seed in values]).T
        steps = np.convolve(list(own), kernel, mode="valid")
        spread = [over_seeds(at.tolist()) for at in smooth]
        axes.plot(steps, [e.mean for e in spread], color=colour, label=label)
        if len(values) > 1:
            low, high = [e.low for e in spread], [e.high for e in spread]
            axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set_xlabel("step")
    if axes.lines:
        axes.legend()


def dynamics(figure: Figure, curves: Mapping[tuple[str, str, str], Curve]) -> None:
    """Overlap and symmetric KL, between branches and to the base."""
    panels = figure.subplots(2, 2)
    for row, quantity in enumerate(QUANTITIES):
        for column, what in enumerate(("branches", "base")):
            axes = panels[row][column]
            own = {
                "coupled" if method == COUPLED else "independent": curve
                for (method, q, w), curve in curves.items()
                if (q, w) == (quantity, what)
            }
            lines(axes, own)
            axes.set_ylabel(quantity.replace("symmetric_kl", "symmetric KL, nats"))
            axes.set_title("between branches" if what == "branches" else "to the base")


def cosines(figure: Figure, curves: Mapping[str, Curve]) -> None:
    """Cosines of the domains' gradients over mixed RLVR."""
    axes = figure.subplots()
    lines(axes, curves, window=15)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("cosine of gradients, mean of 15 steps")


def pilot(figure: Figure, runs: Sequence[Sequence[Point]], found: Correlation) -> None:
    """Gain from OPD against the overlap before it, and the line of least squares."""
    axes = figure.subplots()
    points = [point for own in runs for point in own]
    x = np.array([p.overlap for p in points])
    y = np.array([100 * p.gain.mean for p in points])
    for own in runs:
        axes.plot(
            [p.overlap for p in own],
            [100 * p.gain.mean for p in own],
            "o",
            markersize=4,
            label=f"seed {own[0].seed}",
        )
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, y.mean() + 100 * found.slope * (ends - x.mean()), color="black", linewidth=1)
    axes.set_xlabel("top-10 overlap with the teacher before OPD")
    axes.set_ylabel("gain, points")
    axes.legend()


def _points(
    axes: Axes, means: Sequence[float], places: np.ndarray, cells: Sequence[Estimate], *, along: str
) -> None:
    values = 100 * np.array(means)
    halves = np.nan_to_num(50 * np.array([c.high - c.low for c in cells]), posinf=0.0)
    style = {"fmt": "o", "color": _COLOURS[0], "markersize": 4, "capsize": 2}
    if along == "x":
        axes.errorbar(values, places, xerr=halves, **style)
    else:
        axes.errorbar(places, values, yerr=halves, **style)

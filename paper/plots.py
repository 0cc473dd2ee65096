"""The figures of paper/results.md as SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
from paper import measures
from paper.load import WORLDS, Curve, Found, over_seeds

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
"""Okabe and Ito's, which the colour-blind can distinguish."""

Size = tuple[float, float]


def draw(found: Mapping[str, Found], folder: Path) -> dict[str, str]:
    """Draw what the finished studies allow; return figure name to path relative to the page."""
    drawn = {}
    for name, plot, size in _figures(found):
        with plt.rc_context(_STYLE):
            figure = plt.figure(figsize=size, layout="constrained")
            plot(figure)
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")
            plt.close(figure)
        drawn[name] = f"{folder.name}/{name}.svg"
    return drawn


def _figures(found: Mapping[str, Found]) -> Iterator[tuple[str, Callable[[Figure], None], Size]]:
    worlds = {w: found[name].summary for w, name in WORLDS.items() if name in found}
    if worlds:
        yield "worlds", partial(accuracies, studies=worlds), (4.2 * len(worlds), 3.4)
    for name, label in (("ratio", "S_RL : S_OPD"), ("beta", "beta")):
        if name in found:
            yield name, partial(sweep, summary=found[name].summary, label=label), (5, 3)
    if "dynamics" in found:
        curves = measures.dynamics(found["dynamics"])
        yield "dynamics", partial(dynamics, curves=curves), (8, 5.5)
    if "divergence" in found:
        curves = measures.cosines(found["divergence"])
        yield "divergence", partial(cosines, curves=curves), (5, 3)
    if "pilot" in found and (measured := measures.pilot(found["pilot"])):
        runs, fit = measured
        yield "pilot", partial(pilot, runs=runs, fit=fit), (5, 3.5)


def accuracies(figure: Figure, studies: Mapping[str, Summary]) -> None:
    """Plot the accuracy of methods overall, with intervals, and on every domain.

    There is a panel per study, with the base in its title. Single branches are left out.
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
        values, errors = _points([summary.cells[OVERALL, column] for column in columns])
        axes.errorbar(values, places, xerr=errors, **_POINTS)
        axes.set_yticks(places, columns)
        axes.set_xlabel("accuracy, % (dots: overall)")
        base = f", base {summary.cells[OVERALL, summary.base]}" if summary.base else ""
        axes.set_title(title + base)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def sweep(figure: Figure, summary: Summary, *, label: str) -> None:
    """Plot the overall accuracy of every column; their order is that of a setting."""
    axes = figure.subplots()
    columns = summary.trained
    places = np.arange(len(columns))
    values, errors = _points([summary.cells[OVERALL, column] for column in columns])
    axes.errorbar(places, values, yerr=errors, **_POINTS)
    axes.set_xticks(places, columns)
    axes.set_xlabel(label)
    axes.set_ylabel("overall accuracy, %")


def lines(axes: Axes, curves: Mapping[str, Curve], *, window: int = 1) -> None:
    """Plot means over seeds with Student's intervals, averaged over a window of steps.

    Curves shorter than the window are left out.
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
    """Plot overlap and symmetric KL, between branches and to the base."""
    panels = figure.subplots(2, 2)
    for row, quantity in enumerate(measures.QUANTITIES):
        for column, other in enumerate(("branches", "base")):
            axes = panels[row][column]
            own = {
                "coupled": curves[measures.COUPLED, quantity, other],
                "independent": curves[measures.INDEPENDENT, quantity, other],
            }
            lines(axes, own)
            axes.set_ylabel(quantity.replace("symmetric_kl", "symmetric KL, nats"))
            axes.set_title("between branches" if other == "branches" else "to the base")


def cosines(figure: Figure, curves: Mapping[str, Curve]) -> None:
    """Plot the cosines of the domains' gradients over mixed RLVR."""
    axes = figure.subplots()
    lines(axes, curves, window=15)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("cosine of gradients, mean of 15 steps")


def pilot(figure: Figure, runs: Sequence[Sequence[Point]], fit: Correlation) -> None:
    """Plot the gain from OPD over the overlap before it, with the least-squares line."""
    axes = figure.subplots()
    for own in runs:
        overlaps, gains = [p.overlap for p in own], [100 * p.gain.mean for p in own]
        axes.plot(overlaps, gains, "o", markersize=4, label=f"seed {own[0].seed}")
    x = np.array([p.overlap for own in runs for p in own])
    y = np.array([100 * p.gain.mean for own in runs for p in own])
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, y.mean() + 100 * fit.slope * (ends - x.mean()), color="black", linewidth=1)
    axes.set_xlabel("top-10 overlap with the teacher before OPD")
    axes.set_ylabel("gain, points")
    axes.legend()


_POINTS: dict[str, Any] = {"fmt": "o", "color": _COLOURS[0], "markersize": 4, "capsize": 2}


def _points(cells: Sequence[Estimate]) -> tuple[np.ndarray, np.ndarray]:
    """Return means and half intervals in percent."""
    halves = 50 * np.array([c.high - c.low for c in cells])
    return 100 * np.array([c.mean for c in cells]), np.nan_to_num(halves, posinf=0.0)

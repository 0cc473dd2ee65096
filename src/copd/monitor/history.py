"""The metrics of a run as series over its plan's steps, and the time it still takes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copd.monitor.glyphs import Values
from copd.recipes import OPD, RLVR, Action, Plan

WINDOW = 5
"""Steps averaged for the latest value of a series."""

RECENT = 15
"""Steps of one kind of stage whose median is its rate."""

METRICS = ("accuracy", "reward", "entropy", "length", "overlap", "frac_reward_zero_std")
"""Metrics recorded for each action."""


class History:
    """The steps finished so far."""

    def __init__(self, plan: Plan, *, evaluation_every: int = 0) -> None:
        self.plan = plan
        self.done = 0
        self.cost: Mapping[str, Mapping[str, int]] = {}
        self.kinds = np.array([stage.name for stage in plan.stages for _ in range(stage.steps)])
        self.seconds: Values = np.full(plan.total_steps, np.nan)
        self._series: dict[tuple[str, str], Values] = {
            (action.branch, f"{action.key}/{metric}"): np.full(plan.total_steps, np.nan)
            for stage in plan.stages
            for action in stage.actions
            for metric in METRICS
        }
        steps = np.arange(1, plan.total_steps + 1)
        every = evaluation_every or len(steps) + 1
        self.evaluates: NDArray[np.bool_] = (steps % every == 0) & (steps < len(steps))
        """Whether the time of a step includes an evaluation."""

    def add(self, line: Mapping[str, Any], seconds: float | None) -> None:
        """Add one line of metrics.jsonl, and the seconds of its step if they are known."""
        self.done = line["step"]
        self.cost = line["cost"]
        if seconds is not None:
            self.seconds[self.done - 1] = seconds
        for branch, metrics in line["branches"].items():
            for key, value in metrics.items():
                if (series := self._series.get((branch, key))) is not None:
                    series[self.done - 1] = value

    def read(
        self, metrics: Iterable[Mapping[str, Any]], timings: Iterable[Mapping[str, Any]]
    ) -> None:
        """Replace the history by the lines of metrics.jsonl and timings.jsonl."""
        self.done, self.cost = 0, {}
        for series in (self.seconds, *self._series.values()):
            series.fill(np.nan)
        seconds = {timing["step"]: timing["seconds"] for timing in timings}
        for line in metrics:
            self.add(line, seconds.get(line["step"]))

    def of(self, action: Action, metric: str) -> Values:
        """Return the series of one metric of one action."""
        return self._series[action.branch, f"{action.key}/{metric}"]

    @property
    def is_graded(self) -> bool:
        """Whether rewards take other values than 0 and 1, so that accuracy hides part of them."""
        watched = watched_actions(self.plan)
        pairs = [(self.of(a, "reward"), self.of(a, "accuracy")) for a in watched]
        return any(bool((np.abs(reward - accuracy) > 1e-6).any()) for reward, accuracy in pairs)

    @property
    def elapsed(self) -> float:
        """Seconds of all finished steps, those before a resume included."""
        return float(np.nansum(self.seconds))


def watched_actions(plan: Plan) -> list[Action]:
    """Return each branch's native batches, or its cross batches if it has no native one."""
    actions = _actions(plan)
    native = {a.branch for a in actions if isinstance(a, RLVR)}
    return [a for a in actions if isinstance(a, RLVR) or a.branch not in native]


def teaching_pairs(plan: Plan) -> list[OPD]:
    """Return every combination of student, teacher and domain once."""
    return [action for action in _actions(plan) if isinstance(action, OPD)]


def _actions(plan: Plan) -> list[Action]:
    """Return every action of the plan once, in the order of the branches."""
    actions = {(a.branch, a.key): a for stage in plan.stages for a in stage.actions}.values()
    return sorted(actions, key=lambda action: plan.branches.index(action.branch))


def zero_variance_warnings(history: History) -> list[str]:
    """Return a sentence for each action whose groups had equal rewards at every step."""
    lines = []
    for action in watched_actions(history.plan):
        fractions = history.of(action, "frac_reward_zero_std")
        fractions = fractions[~np.isnan(fractions)]
        if len(fractions) and (fractions == 1).all():
            mean = float(np.nanmean(history.of(action, "reward")))
            lines.append(
                f"{action.branch} learned nothing from rewards on {action.domain}: at every step "
                f"({len(fractions)}) all completions of a group had the same reward, {mean:.2f} on "
                "average. Read them in rollouts.jsonl; docs/metrics.md names remedies under "
                "frac_reward_zero_std."
            )
    return lines


@dataclass(frozen=True)
class Latest:
    """The latest value of a series and its change since the start."""

    value: float
    change: float | None
    """None after a single step."""


def latest(values: Values) -> Latest | None:
    """Compare the means of the last and the first `WINDOW` steps, or of the halves of fewer."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    width = min(WINDOW, max(1, len(known) // 2))
    now = float(known[-width:].mean())
    return Latest(now, now - float(known[:width].mean()) if len(known) > 1 else None)


def rates(history: History) -> dict[str, float]:
    """Return seconds per step, without evaluations, of each kind of stage that has begun."""
    found = {}
    for kind in dict.fromkeys(history.kinds.tolist()):
        timed = (history.kinds == kind) & ~np.isnan(history.seconds)
        alone = timed & ~history.evaluates
        chosen = history.seconds[alone if alone.any() else timed]
        if len(chosen):
            found[kind] = float(np.median(chosen[-RECENT:]))
    return found


def remaining(history: History) -> float | None:
    """Estimate the seconds until the last step, evaluations included; None before the first.

    A kind of stage that has not begun takes as long per batch as the others.
    """
    known = rates(history)
    if not known:
        return None
    batches = {stage.name: len(stage.actions) for stage in history.plan.stages}
    per_batch = sum(known.values()) / sum(batches[kind] for kind in known)
    seconds = 0.0
    for kind in history.kinds[history.done :].tolist():
        seconds += known.get(kind, per_batch * batches[kind])
    extra = [
        history.seconds[index] - known[kind]
        for index in np.flatnonzero(history.evaluates & ~np.isnan(history.seconds))
        if (kind := str(history.kinds[index])) in known
    ]
    pending = int(history.evaluates[history.done :].sum())
    return seconds + pending * max(0.0, float(np.mean(extra)) if extra else 0.0)

"""What the lines of a run directory say so far, as series over the plan's steps; what a view of the
run draws and what its remaining time is estimated from. Knows no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from copd.monitor.glyphs import Values
from copd.recipes import OPD, RLVR, Action, Plan

WINDOW = 5
"""Steps that the latest value of a noisy series is the mean of."""

RECENT = 15
"""Steps of a kind of stage that its rate is the median of."""

METRICS = ("accuracy", "reward", "entropy", "length", "overlap", "frac_reward_zero_std")
"""What is kept of each action."""


class History:
    """The steps done so far. It grows by `add`."""

    def __init__(self, plan: Plan, *, evaluation_every: int = 0) -> None:
        self.plan = plan
        self.every = evaluation_every
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

    def add(self, line: Mapping[str, Any], seconds: float | None) -> None:
        """One line of metrics.jsonl, and the seconds of its step if they are known."""
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
        """All lines of metrics.jsonl and timings.jsonl at once, in place of those before."""
        self.done, self.cost = 0, {}
        for series in (self.seconds, *self._series.values()):
            series.fill(np.nan)
        seconds = {timing["step"]: timing["seconds"] for timing in timings}
        for line in metrics:
            self.add(line, seconds.get(line["step"]))

    def of(self, action: Action, metric: str) -> Values:
        """One metric of one action."""
        return self._series[action.branch, f"{action.key}/{metric}"]

    @property
    def is_graded(self) -> bool:
        """Whether rewards are more than right or wrong, so that accuracy does not tell them."""
        watched = watched_actions(self.plan)
        pairs = [(self.of(a, "reward"), self.of(a, "accuracy")) for a in watched]
        return any(bool((np.abs(reward - accuracy) > 1e-6).any()) for reward, accuracy in pairs)

    @property
    def elapsed(self) -> float:
        """Seconds of all steps done, in this session and earlier ones."""
        return float(np.nansum(self.seconds))


def watched_actions(plan: Plan) -> list[Action]:
    """Whose rewards are of interest: a branch's native batches, or its cross ones without any."""
    actions = {(a.branch, a.key): a for stage in plan.stages for a in stage.actions}.values()
    native = {a.branch for a in actions if isinstance(a, RLVR)}
    chosen = [a for a in actions if isinstance(a, RLVR) or a.branch not in native]
    return sorted(chosen, key=lambda action: plan.branches.index(action.branch))


def zero_variance_warnings(history: History) -> list[str]:
    """What to say of rewards that never differed within a group: they moved no weight."""
    lines = []
    for action in watched_actions(history.plan):
        silent = history.of(action, "frac_reward_zero_std")
        silent = silent[~np.isnan(silent)]
        if len(silent) and (silent == 1).all():
            mean = float(np.nanmean(history.of(action, "reward")))
            lines.append(
                f"{action.branch} learned nothing from rewards on {action.domain}: at every step "
                f"({len(silent)}) the completions of each group earned the same, {mean:.2f} on "
                "average. rollouts.jsonl shows them; docs/metrics.md, frac_reward_zero_std, what may help."
            )
    return lines


def teaching_pairs(plan: Plan) -> list[OPD]:
    """Every student, teacher and domain once, in the order of the branches."""
    actions = {(a.branch, a.key): a for stage in plan.stages for a in stage.actions}.values()
    pairs = [action for action in actions if isinstance(action, OPD)]
    return sorted(pairs, key=lambda action: plan.branches.index(action.branch))


@dataclass(frozen=True)
class Latest:
    """Where a series is now, and how far that is from where it began."""

    value: float
    change: float | None
    """None after a single step."""


def latest(values: Values) -> Latest | None:
    """Means over `WINDOW` steps, or over half of the steps where these are fewer."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    width = min(WINDOW, max(1, len(known) // 2))
    now = float(known[-width:].mean())
    return Latest(now, now - float(known[:width].mean()) if len(known) > 1 else None)


def rates(history: History) -> dict[str, float]:
    """Stage name to seconds per step, evaluations not included; only for kinds that have begun."""
    found = {}
    for kind in dict.fromkeys(history.kinds.tolist()):
        timed = (history.kinds == kind) & ~np.isnan(history.seconds)
        alone = timed & ~_evaluated(history)
        chosen = history.seconds[alone if alone.any() else timed]
        if len(chosen):
            found[kind] = float(np.median(chosen[-RECENT:]))
    return found


def remaining(history: History) -> float | None:
    """Estimated seconds until the last step: each kind of stage at its own rate, and evaluations.

    A kind that has not begun is guessed from the batches its steps have.
    """
    known = rates(history)
    if not known:
        return None
    batches = {stage.name: len(stage.actions) for stage in history.plan.stages}
    per_batch = sum(known.values()) / sum(batches[kind] for kind in known)
    seconds = 0.0
    for kind in history.kinds[history.done :].tolist():
        seconds += known.get(kind, per_batch * batches[kind])
    evaluated = _evaluated(history)
    extra = [
        history.seconds[index] - known[kind]
        for index in np.flatnonzero(evaluated & ~np.isnan(history.seconds))
        if (kind := str(history.kinds[index])) in known
    ]
    pending = int(evaluated[history.done :].sum())
    return seconds + pending * max(0.0, float(np.mean(extra)) if extra else 0.0)


def _evaluated(history: History) -> NDArray[np.bool_]:
    """The steps whose time has an evaluation in it."""
    steps = np.arange(1, history.plan.total_steps + 1)
    if not history.every:
        return np.zeros(len(steps), bool)
    return (steps % history.every == 0) & (steps < len(steps))

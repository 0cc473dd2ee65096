"""The notes under a study's tables: how to read them, and every gap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from copd.lab.study.moments import DOMAIN_MEAN, ORACLE
from copd.lab.study.statistics import Summary

_EQUAL = {"branch_steps": "branch steps", "tokens": "tokens"}


def notes(summary: Summary) -> tuple[str, ...]:
    """Return notes of a sentence or two: how to read the tables, then every gap."""
    return (*_reading(summary), *_seeds(summary), *_gaps(summary), *_headroom(summary))


def _reading(summary: Summary) -> list[str]:
    names = _listed(summary.own_budget)
    own = f"; on budgets of their own: {names}" if names else ""
    lines = [
        f"Methods have the same number of {_EQUAL.get(summary.equal, summary.equal)}{own}.",
        "Intervals are 95 %, over seeds and problems, by a paired bootstrap: the same resampled "
        "problems for all columns and the same weights of seeds.",
        "A domain is the mean over its suites; overall is the mean over all suites.",
        "Bold: ahead of every other column by a paired difference whose interval excludes zero. "
        "Italic: the best and those that are not clearly behind it. The routed oracle does not "
        "compete, and intervals are not adjusted for the number of comparisons.",
        "A probability is the share of bootstrap draws in which a column is ahead, ties half: "
        "what these seeds and problems say of others like them, not a p-value.",
    ]
    if any(row.name == DOMAIN_MEAN for row in summary.rows):
        lines.append(f"The {DOMAIN_MEAN} weighs domains the same, however many suites they have.")
    if ORACLE in summary.columns:
        lines.append("The routed oracle sends each domain to its expert of the same seed.")
    return lines


def _seeds(summary: Summary) -> list[str]:
    seeded = dict(summary.seeds)
    lines = []
    if summary.base is not None and len(seeded[summary.base]) == 1:
        del seeded[summary.base]
        lines.append(f"{summary.base} was measured once: its intervals are over problems only.")
    every = sorted(set(itertools.chain(*seeded.values())))
    for column, seeds in seeded.items():
        if len(seeds) < len(every):
            lines.append(
                f"{column} has seeds {_listed(sorted(seeds))} of {_listed(every)}: "
                "it is compared on the seeds that both columns have."
            )
        if len(seeds) == 1:
            lines.append(
                f"{column} has one seed: its intervals are over problems only and say nothing "
                "of other seeds."
            )
    return lines


def _gaps(summary: Summary) -> list[str]:
    lines = [f"Not finished yet: {'; '.join(summary.missing)}."] if summary.missing else []
    domains = [row.name for row in summary.rows if row.kind == "domain"]
    for column in summary.columns:
        empty = [name for name in domains if math.isnan(summary.cells[name, column].mean)]
        if empty:
            lines.append(f"{column} was not measured on {_listed(empty)} with every seed.")
    compared = {(a, b) for _, a, b in summary.comparisons}
    pairs = itertools.combinations(summary.columns, 2)
    if apart := [f"{a} and {b}" for a, b in pairs if (a, b) not in compared]:
        lines.append(f"No seed or no problem in common, so not compared: {'; '.join(apart)}.")
    return lines


def _headroom(summary: Summary) -> list[str]:
    lines = []
    shown = {row for row, column in summary.headroom if column in summary.trained}
    small = [row.name for row in summary.main_rows if row.name not in shown]
    if summary.base is None:
        lines.append("There is no base: no headroom is shown.")
    elif ORACLE not in summary.columns:
        lines.append("No seed has the experts of all domains: no headroom is shown.")
    elif small:
        lines.append(
            f"The routed oracle is not ahead of {summary.base} by an interval that excludes zero "
            f"on {_listed(small)}: no headroom is shown there."
        )
    suites = [row for row in summary.rows if row.kind == "suite"]
    if single := [row.name for row in suites if row.num_problems == 1]:
        lines.append(f"One problem only, so no interval: {_listed(single)} and what has them.")
    return lines


def _listed(names: Iterable[str | int]) -> str:
    return ", ".join(map(str, names))

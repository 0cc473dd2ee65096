"""The paper's claims as differences in our studies, with intervals and verdicts.

A part `holds` where its interval is on the claimed side of zero (of minus one point, where the
claim is "at or above" or "near"), `fails` where it is on the other side of zero, and is `open`
otherwise. A claim holds where all parts do, and fails where all do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from copd.lab.study import Summary
from copd.lab.study.layout import percent, signed
from copd.lab.study.moments import ORACLE
from copd.lab.study.results import OVERALL
from copd.monitor.results import Estimate

Verdict = Literal["holds", "fails", "open", "in part"]
Experts = Mapping[str, str]
"""Domain to the column of its expert."""

STATIC = "static OPD and MOPD are below CoPD"
NEAR = 0.01
"""The margin of "at" and "near": one point."""


@dataclass(frozen=True)
class Part:
    """One difference of a claim."""

    text: str
    value: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A claim in one study."""

    text: str
    study: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> Verdict:
        """The verdict on all parts together."""
        found = {part.verdict for part in self.parts}
        if len(found) == 1:
            return self.parts[0].verdict
        return "in part" if "holds" in found or "fails" in found else "open"


def judge(difference: Estimate, *, margin: float = 0.0) -> Verdict:
    """Return the verdict on a difference that is claimed to be above minus a margin."""
    if difference.low > -margin:
        return "holds"
    return "fails" if difference.high < 0 else "open"


def ahead(
    summary: Summary, pairs: Iterable[tuple[str, str, str]], *, margin: float = 0.0
) -> list[Part]:
    """Return A minus B in points for each (row, A, B) that the study has."""
    parts = []
    for row, a, b in pairs:
        if (found := summary.comparisons.get((row, a, b))) is not None:
            where = "" if row == OVERALL else f" on {row}"
            value = f"{signed(found.difference)} ({percent(found.probability)} %)"
            parts.append(Part(f"{a} - {b}{where}", value, judge(found.difference, margin=margin)))
    return parts


def overall(summary: Summary, a: str, others: Iterable[str]) -> list[Part]:
    """Return A minus each other column, overall."""
    return ahead(summary, [(OVERALL, a, other) for other in others])


def paper_claims(study: str, summary: Summary, experts: Experts) -> list[Claim]:
    """Return the claims about the paper's methods, in a study that has them all."""
    pairs = [(domain, expert, "mixed") for domain, expert in experts.items()]
    mixed = {"mixed RLVR is below the experts on their own domain": ahead(summary, pairs)}
    return [*_claims(study, mixed), *copd_claims(study, summary, experts, "copd")]


def copd_claims(study: str, summary: Summary, experts: Experts, column: str) -> list[Claim]:
    """Return the claims about CoPD alone, for one of its columns."""
    static = [c for c in summary.columns if c.startswith("opd ")] + ["mopd"]
    own = [(domain, column, expert) for domain, expert in experts.items()]
    above = "CoPD is at or above each expert on its own domain"
    parts = {
        STATIC: overall(summary, column, static),
        above: ahead(summary, own, margin=NEAR),
    }
    return _claims(study, parts)


def ablation_claims(study: str, summary: Summary) -> list[Claim]:
    """Return the claims about each OPD direction, learning teachers, and the merge."""
    untaught = [c for c in summary.columns if c.endswith(" untaught")]
    alone = [c for c in summary.columns if c.startswith("copd: branch ")]
    parts = {
        "each OPD direction adds": overall(summary, "copd", untaught),
        STATIC: overall(summary, "copd", ["mopd"]),
        "the merge adds to every branch": overall(summary, "copd", alone),
    }
    return _claims(study, parts)


def ratio_claims(study: str, summary: Summary) -> list[Claim]:
    """Return whether 3 : 2 is near the best ratio, and whether all are ahead of no OPD."""
    others = [c for c in summary.trained if c != "3 : 2"]
    if not others or "3 : 2" not in summary.columns:
        return []
    best = max(others, key=lambda column: summary.cells[OVERALL, column].mean)
    pairs = [(OVERALL, column, "5 : 0") for column in summary.trained if column != "5 : 0"]
    parts = {
        "3 : 2 is near the best ratio": ahead(summary, [(OVERALL, "3 : 2", best)], margin=NEAR),
        "every ratio is ahead of none at all": ahead(summary, pairs),
    }
    return _claims(study, parts)


def world_answers(summary: Summary, experts: Experts, column: str) -> list[Part]:
    """Return the differences of a column of CoPD to the other methods in a world."""
    named = ("copd", "mopd", "mixed", "mixed, 3 x prompts", "experts: average")
    return [
        *overall(summary, column, [other for other in named if other != column]),
        *ahead(summary, [(domain, column, expert) for domain, expert in experts.items()]),
        *overall(summary, column, [ORACLE]),
        *overall(summary, f"{column}: validation", [column]),
    ]


def world_limits(summary: Summary, experts: Experts) -> list[Part]:
    """Return what separates copd from the experts: coupling before the merge, then the merge.

    A branch and the expert of its domain have equally many RLVR steps on it.
    """
    branches = {domain: f"copd: branch {domain}" for domain in experts}
    coupling = [(domain, branches[domain], expert) for domain, expert in experts.items()]
    merge = [(domain, "copd", branch) for domain, branch in branches.items()]
    return ahead(summary, [*coupling, *merge])


def chosen_remedy(summary: Summary) -> str | None:
    """Return the column with the best overall accuracy, by the rule of studies/remedies_*.toml."""
    return max(summary.trained, key=lambda c: summary.cells[OVERALL, c].mean, default=None)


def confirmation(summary: Summary, remedy: str) -> list[Part]:
    """Compare the chosen remedy with the paper's recipe and mixed RLVR, in the world's study."""
    return overall(summary, remedy, ["copd", "mixed", "mixed, 3 x prompts"])


def _claims(study: str, parts: Mapping[str, Sequence[Part]]) -> list[Claim]:
    return [Claim(text, study, tuple(own)) for text, own in parts.items() if own]

"""What the paper claims, asked of our studies: differences, intervals, verdicts. Reads no file.

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

STATIC = "static OPD and MOPD are below CoPD"
NEAR = 0.01
"""One point: what "at" and "near" allow."""


@dataclass(frozen=True)
class Part:
    """One difference that a claim is about."""

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
        """All parts together."""
        found = {part.verdict for part in self.parts}
        if len(found) == 1:
            return self.parts[0].verdict
        return "in part" if "holds" in found or "fails" in found else "open"


def judge(difference: Estimate, *, margin: float = 0.0) -> Verdict:
    """On which side of zero, or of minus a margin, the interval is."""
    if difference.low > -margin:
        return "holds"
    return "fails" if difference.high < 0 else "open"


def ahead(summary: Summary, row: str, a: str, b: str, *, margin: float = 0.0) -> list[Part]:
    """A minus B in a row, in points; nothing where the study does not have both."""
    found = summary.comparisons.get((row, a, b))
    if found is None:
        return []
    value = f"{signed(found.difference)} ({percent(found.probability)} %)"
    where = "" if row == OVERALL else f" on {row}"
    return [Part(f"{a} - {b}{where}", value, judge(found.difference, margin=margin))]


def paper_claims(study: str, summary: Summary, experts: Mapping[str, str]) -> list[Claim]:
    """The paper's claims about its methods, in a study that has them all."""
    own = [(d, column) for d, column in experts.items() if column in summary.columns]
    below = _joined(ahead(summary, domain, expert, "mixed") for domain, expert in own)
    mixed = {"mixed RLVR is below the experts on their own domain": below}
    return [*_claims(study, mixed), *copd_claims(study, summary, experts, "copd")]


def copd_claims(
    study: str, summary: Summary, experts: Mapping[str, str], column: str
) -> list[Claim]:
    """Those about CoPD alone, of one of its columns."""
    own = [(d, expert) for d, expert in experts.items() if expert in summary.columns]
    static = [c for c in summary.columns if c.startswith("opd ")] + ["mopd"]
    return _claims(
        study,
        {
            STATIC: _joined(ahead(summary, OVERALL, column, other) for other in static),
            "CoPD is at or above each expert on its own domain": _joined(
                ahead(summary, domain, column, expert, margin=NEAR) for domain, expert in own
            ),
        },
    )


def ablation_claims(study: str, summary: Summary) -> list[Claim]:
    """What each OPD direction, teachers that still learn, and the merge add."""
    untaught = [c for c in summary.columns if c.endswith(" untaught")]
    alone = [c for c in summary.columns if c.startswith("copd: branch ")]
    return _claims(
        study,
        {
            "each OPD direction adds": _joined(
                ahead(summary, OVERALL, "copd", other) for other in untaught
            ),
            STATIC: ahead(summary, OVERALL, "copd", "mopd"),
            "the merge adds to every branch": _joined(
                ahead(summary, OVERALL, "copd", other) for other in alone
            ),
        },
    )


def ratio_claims(study: str, summary: Summary) -> list[Claim]:
    """Whether 3 : 2 is near the best of the ratios tried, and all are ahead of none."""
    others = [c for c in summary.trained if c != "3 : 2"]
    if not others or "3 : 2" not in summary.columns:
        return []
    best = max(others, key=lambda column: summary.cells[OVERALL, column].mean)
    taught = [c for c in summary.trained if c != "5 : 0"]
    return _claims(
        study,
        {
            "3 : 2 is near the best ratio": ahead(summary, OVERALL, "3 : 2", best, margin=NEAR),
            "every ratio is ahead of none at all": _joined(
                ahead(summary, OVERALL, column, "5 : 0") for column in taught
            ),
        },
    )


def world_answers(summary: Summary, experts: Mapping[str, str], column: str) -> list[Part]:
    """Where a column of CoPD stands in a world: the questions of the issue."""
    named = ("copd", "mopd", "mixed", "mixed, 3 x prompts", "experts: average")
    others = [other for other in named if other != column]
    return _joined(
        [
            *(ahead(summary, OVERALL, column, other) for other in others),
            *(ahead(summary, domain, column, expert) for domain, expert in experts.items()),
            ahead(summary, OVERALL, column, ORACLE),
            ahead(summary, OVERALL, f"{column}: validation", column),
        ]
    )


def world_limits(summary: Summary, experts: Mapping[str, str]) -> list[Part]:
    """What parts copd from the experts: coupling before the merge, then the merge itself.

    A branch and the expert of its domain have had equally many RLVR steps of it.
    """
    branches = {domain: f"copd: branch {domain}" for domain in experts}
    return _joined(
        [
            *(ahead(summary, d, branches[d], expert) for d, expert in experts.items()),
            *(ahead(summary, domain, "copd", branch) for domain, branch in branches.items()),
        ]
    )


def chosen_remedy(summary: Summary) -> str | None:
    """The column with the best overall accuracy, the rule of paper/studies/remedies_*.toml."""
    return max(summary.trained, key=lambda c: summary.cells[OVERALL, c].mean, default=None)


def confirmation(summary: Summary, remedy: str) -> list[Part]:
    """The chosen remedy in the world's study: against the paper's recipe and mixed RLVR."""
    others = ["copd", "mixed", "mixed, 3 x prompts"]
    return _joined(ahead(summary, OVERALL, remedy, other) for other in others)


def _claims(study: str, parts: Mapping[str, Sequence[Part]]) -> list[Claim]:
    return [Claim(text, study, tuple(own)) for text, own in parts.items() if own]


def _joined(parts: Iterable[Sequence[Part]]) -> list[Part]:
    return [part for own in parts for part in own]

"""A diagnosis as one HTML file in the style of the report."""

from html import escape

from copd.lab.diagnose.findings import Diagnosis, DomainDiagnosis
from copd.lab.diagnose.tables import (
    RULE_OF_THUMB,
    group_table,
    notes,
    position_table,
    to_json,
)
from copd.lab.diagnose.verdict import WORDS
from copd.lab.report.fragments import folded, table
from copd.lab.report.page import asset, embedded, framed

PACKAGE = "copd.lab.diagnose"


def page(diagnosis: Diagnosis) -> str:
    """Return the page as text."""
    found = to_json(diagnosis)
    domains = diagnosis.domains.items()
    parts = {
        "title": escape(f"{diagnosis.student} from {diagnosis.teacher}"),
        "verdict": escape(found["verdict"]),
        "thumb": escape(RULE_OF_THUMB),
        "notes": escape(notes(diagnosis)),
        "domains": "".join(_domain(name, own, diagnosis.overlap_k) for name, own in domains),
        "script": "\n".join([asset("page.js"), asset("chart.js"), asset("positions.js", PACKAGE)]),
        "data": embedded({"axis": "token", "runs": [], "domains": found["domains"]}),
    }
    return framed("diagnose", asset("page.html", PACKAGE), parts)


def _domain(name: str, own: DomainDiagnosis, overlap_k: int) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in own.verdict.reasons)
    return (
        f'<section><h2>{escape(name)}</h2><p data-verdict="{escape(own.verdict.word)}">'
        f"{escape(WORDS[own.verdict.word])}.</p><ul>{reasons}</ul>"
        f"{table(*group_table(name, own, overlap_k))}"
        f"{folded('By position, in numbers', table(*position_table(own, overlap_k)))}</section>"
    )

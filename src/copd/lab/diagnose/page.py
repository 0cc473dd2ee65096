"""A diagnosis as one HTML file in the look of the report. Measures nothing, loads nothing."""

from __future__ import annotations

import time
from html import escape
from importlib import resources

from copd.lab.diagnose.findings import Diagnosis, DomainDiagnosis
from copd.lab.diagnose.tables import RULE_OF_THUMB, Rows, notes, part_rows, position_rows, to_json
from copd.lab.diagnose.verdict import WORDS
from copd.lab.report.fragments import folded, moment
from copd.lab.report.page import embedded, framed

FILES = {
    "style": (("copd.lab.report", "page.css"),),
    "script": (
        ("copd.lab.report", "page.js"),
        ("copd.lab.report", "chart.js"),
        ("copd.lab.diagnose", "positions.js"),
    ),
}


def page(diagnosis: Diagnosis) -> str:
    """The page as text."""
    found = to_json(diagnosis)
    data = {"axis": "token", "runs": [], "domains": found["domains"]}
    parts = {
        "title": escape(f"{diagnosis.student} from {diagnosis.teacher}"),
        "made": moment(time.time()),
        "verdict": escape(found["verdict"]),
        "thumb": escape(RULE_OF_THUMB),
        "notes": escape(notes(diagnosis)),
        "domains": "".join(
            _domain(name, own, diagnosis.overlap_k) for name, own in diagnosis.domains.items()
        ),
        **{name: "\n".join(_file(*file) for file in files) for name, files in FILES.items()},
        "data": embedded(data),
    }
    return framed("diagnose", _file("copd.lab.diagnose", "page.html"), parts)


def _domain(name: str, own: DomainDiagnosis, overlap_k: int) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in own.verdict.reasons)
    positions = _table("tokens", *position_rows(own, overlap_k))
    return (
        f'<section><h2>{escape(name)}</h2><p data-verdict="{escape(own.verdict.word)}">'
        f"{escape(WORDS[own.verdict.word])}.</p><ul>{reasons}</ul>"
        f"{_table(name, *part_rows(own, overlap_k))}"
        f"{folded('By position, in numbers', positions)}</section>"
    )


def _table(title: str, head: list[str], rows: Rows) -> str:
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in (title, *head))
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for label, cells in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{columns}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")

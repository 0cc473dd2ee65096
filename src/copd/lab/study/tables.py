"""The tables of a study in Markdown, HTML and for a terminal.

Knows only sheets of text, no numbers.
"""

from __future__ import annotations

import html
import re

from rich.console import Group
from rich.table import Table
from rich.text import Text

from copd.lab.study.layout import Cell, Sheet, TableRow, sheets
from copd.lab.study.notes import notes
from copd.lab.study.statistics import Summary

_STYLES = {"best": "bold", "clear": "bold", "tied": "italic", "missing": "dim", "": ""}


def to_markdown(summary: Summary, *, reference: str | None = None) -> str:
    """All tables and the notes; differences are to `reference`, by default copd or the last one."""
    blocks = [_markdown(sheet) for sheet in sheets(summary, reference)]
    blocks.append("\n".join(f"- {_escaped(note)}" for note in notes(summary)))
    return "\n\n".join(blocks) + "\n"


def to_html(summary: Summary, *, reference: str | None = None) -> str:
    """A fragment of captioned tables and a list of notes; classes, no style, no script."""
    blocks = [_html(sheet) for sheet in sheets(summary, reference)]
    items = "\n".join(f"<li>{html.escape(note, quote=False)}</li>" for note in notes(summary))
    return "\n".join([*blocks, f'<ul class="study-notes">\n{items}\n</ul>']) + "\n"


def to_console(summary: Summary, *, reference: str | None = None) -> Group:
    """The same for a terminal."""
    tables = [_console(sheet) for sheet in sheets(summary, reference)]
    return Group(*tables, *(Text(f"- {note}") for note in notes(summary)))


def _markdown(sheet: Sheet) -> str:
    heads = [sheet.corner, *sheet.heads]
    rule = ["---", *("---:" for _ in sheet.heads)]
    lines = [[_label(line), *map(_marked, line.cells)] for line in sheet.lines]
    rows = [[_escaped(head) for head in heads], rule, *lines]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{_escaped(sheet.caption)}:\n\n{table}"


def _label(line: TableRow) -> str:
    is_mean = line.kind in ("domain", "overall")
    return f"**{_escaped(line.label)}**" if is_mean else _escaped(line.label)


def _marked(cell: Cell) -> str:
    sign = {"best": "**", "clear": "**", "tied": "*"}.get(cell.mark, "")
    return f"{sign}{_escaped(cell.text)}{sign}"


def _escaped(text: str) -> str:
    """Names stay what they are: no columns, emphasis, links or tags of their own."""
    return re.sub(r"([|*\\`\[\]]|<(?=[A-Za-z/!?]))", r"\\\1", " ".join(text.split()))


def _html(sheet: Sheet) -> str:
    heads = "".join(f'<th scope="col">{_text(head)}</th>' for head in (sheet.corner, *sheet.heads))
    body = "\n".join(_html_line(line) for line in sheet.lines)
    return (
        f'<table class="study study-{sheet.name}">\n<caption>{_text(sheet.caption)}</caption>\n'
        f"<thead>\n<tr>{heads}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def _html_line(line: TableRow) -> str:
    cells = "".join(_html_cell(cell) for cell in line.cells)
    return f'<tr class="{line.kind}"><th scope="row">{_text(line.label)}</th>{cells}</tr>'


def _html_cell(cell: Cell) -> str:
    tag = {"best": "strong", "clear": "strong", "tied": "em"}.get(cell.mark)
    inner = f"<{tag}>{_text(cell.text)}</{tag}>" if tag else _text(cell.text)
    return f'<td class="{cell.mark}">{inner}</td>' if cell.mark else f"<td>{inner}</td>"


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _console(sheet: Sheet) -> Table:
    table = Table(title=Text(sheet.caption), title_justify="left")
    table.add_column(Text(sheet.corner))
    for head in sheet.heads:
        table.add_column(Text(head), justify="right")
    for line in sheet.lines:
        cells = (Text(cell.text, style=_STYLES[cell.mark]) for cell in line.cells)
        bold = "bold" if line.kind in ("domain", "overall") else ""
        table.add_row(Text(line.label, style=bold), *cells, end_section=line.kind == "domain")
    return table

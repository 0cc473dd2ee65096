"""The tables of a study in Markdown, in HTML and for a terminal."""

import html
import re

from rich.console import Group
from rich.table import Table
from rich.text import Text

from copd.lab.study.layout import Cell, Sheet, TableRow, notes, sheets
from copd.lab.study.statistics import Summary

_STYLES = {"best": "bold", "clear": "bold", "tied": "italic", "missing": "dim", "": ""}
_SIGNS = {"best": "**", "clear": "**", "tied": "*"}
_TAGS = {"best": "strong", "clear": "strong", "tied": "em"}
_MEANS = ("domain", "overall")
"""Kinds of rows whose labels are bold."""


def to_markdown(summary: Summary, *, reference: str | None = None) -> str:
    """Format all tables and notes as Markdown.

    Args:
        summary: The study.
        reference: Column of the differences; by default "copd", or else the last trained one.

    Returns:
        Captioned tables, then a list of notes.
    """
    blocks = [_markdown(sheet) for sheet in sheets(summary, reference)]
    blocks.append("\n".join(f"- {_escape(note)}" for note in notes(summary)))
    return "\n\n".join(blocks) + "\n"


def to_html(summary: Summary, *, reference: str | None = None) -> str:
    """Format all tables and notes as an HTML fragment with classes, without style or script.

    Args:
        summary: The study.
        reference: Column of the differences; by default "copd", or else the last trained one.

    Returns:
        Captioned tables, then a list of notes.
    """
    blocks = [_html(sheet) for sheet in sheets(summary, reference)]
    items = "\n".join(f"<li>{_text(note)}</li>" for note in notes(summary))
    return "\n".join([*blocks, f'<ul class="study-notes">\n{items}\n</ul>']) + "\n"


def to_console(summary: Summary, *, reference: str | None = None) -> Group:
    """Format all tables and notes for a terminal.

    Args:
        summary: The study.
        reference: Column of the differences; by default "copd", or else the last trained one.

    Returns:
        Titled tables, then the notes.
    """
    tables = [_console(sheet) for sheet in sheets(summary, reference)]
    return Group(*tables, *(Text(f"- {note}") for note in notes(summary)))


def _markdown(sheet: Sheet) -> str:
    def row(own: TableRow) -> list[str]:
        bold = "**" if own.kind in _MEANS else ""
        return [f"{bold}{_escape(own.label)}{bold}", *map(cell, own.cells)]

    def cell(own: Cell) -> str:
        sign = _SIGNS.get(own.mark, "")
        return f"{sign}{_escape(own.text)}{sign}"

    head = [_escape(text) for text in (sheet.corner, *sheet.heads)]
    rows = [head, ["---", *("---:" for _ in sheet.heads)], *map(row, sheet.rows)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"{_escape(sheet.caption)}:\n\n{table}"


def _escape(text: str) -> str:
    """Escape what Markdown would read as columns, emphasis, links or tags."""
    return re.sub(r"([|*\\`\[\]]|<(?=[A-Za-z/!?]))", r"\\\1", " ".join(text.split()))


def _html(sheet: Sheet) -> str:
    def row(own: TableRow) -> str:
        cells = "".join(map(cell, own.cells))
        return f'<tr class="{own.kind}"><th scope="row">{_text(own.label)}</th>{cells}</tr>'

    def cell(own: Cell) -> str:
        inner, tag = _text(own.text), _TAGS.get(own.mark)
        inner = f"<{tag}>{inner}</{tag}>" if tag else inner
        return f'<td class="{own.mark}">{inner}</td>' if own.mark else f"<td>{inner}</td>"

    heads = "".join(f'<th scope="col">{_text(head)}</th>' for head in (sheet.corner, *sheet.heads))
    body = "\n".join(map(row, sheet.rows))
    return (
        f'<table class="study study-{sheet.name}">\n<caption>{_text(sheet.caption)}</caption>\n'
        f"<thead>\n<tr>{heads}</tr>\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    )


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _console(sheet: Sheet) -> Table:
    table = Table(title=Text(sheet.caption), title_justify="left")
    table.add_column(Text(sheet.corner))
    for head in sheet.heads:
        table.add_column(Text(head), justify="right")
    for row in sheet.rows:
        cells = (Text(cell.text, style=_STYLES[cell.mark]) for cell in row.cells)
        label = Text(row.label, style="bold" if row.kind in _MEANS else "")
        table.add_row(label, *cells, end_section=row.kind == "domain")
    return table

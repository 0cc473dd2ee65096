"""Writes chosen rows of a domain's files with their pass rates, in the format of the files."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from copd.domains.files import FilesDomain
from copd.domains.files.draft import read_draft
from copd.domains.files.hub import ArrowTable, write_parquet
from copd.domains.files.index import Source
from copd.domains.files.tables import TextTable
from copd.domains.files.text import holds_list

COLUMN = "pass_rate"
"""Name of the added column."""


def check_target(domain: FilesDomain, out: Path) -> None:
    """Raise ValueError for a file that cannot hold the rows, or would change their meaning."""
    if out.exists():
        raise ValueError(f"{out} exists already: expected a new file. Choose another --out.")
    if not out.parent.is_dir():
        raise ValueError(f"--out must be in a folder that exists: got {out}. Make the folder.")
    sources = _training_sources(domain)
    tables = [source.table for source in sources.values()]
    expected = {t.path.suffix if isinstance(t, TextTable) else ".parquet" for t in tables}
    if expected != {out.suffix}:
        kinds = ", ".join(sorted(expected))
        raise ValueError(
            f"the filtered file has the format of its source: got --out {out} for {kinds}. "
            + (f"Name a file that ends in {kinds}." if len(expected) == 1 else "Filter each alone.")
        )
    headers = {table.header for table in tables if isinstance(table, TextTable)}
    if len(headers) > 1:
        raise ValueError(
            f"CSV files that are filtered together must have the same columns: got "
            f"{' and '.join(str(list(h)) for h in sorted(headers))}. Filter each alone."
        )
    paths = [domain.config.path] if isinstance(domain.config.path, str) else domain.config.path
    if any(Path(path).expanduser().resolve() == out.parent.resolve() for path in paths):
        raise ValueError(
            f"every file in {out.parent} is training data: got --out {out} in a folder that is a "
            "path of the domain. Write it elsewhere (with media, set media_root to the folder)."
        )
    for source in sources.values():
        _check_rows(source, domain, out)


def write_filtered(domain: FilesDomain, rates: Mapping[int, float], out: Path) -> int:
    """Write the training problems in `rates` with their rates, in the order of their files.

    Held-out problems of the training files are written too, without a rate, so that the new file
    has the same held-out splits. Their number is returned.
    """
    rows: dict[int, dict[int, float | None]] = {n: {} for n in _training_sources(domain)}
    for split in ("validation", "test"):
        for number, row in domain.places(split).tolist():
            if number in rows:
                rows[number][row] = None
    num_held_out = sum(map(len, rows.values()))
    places = domain.places("train")
    for index, rate in rates.items():
        number, row = places[index].tolist()
        rows[number][row] = rate
    tables = [(domain.sources[n].table, dict(sorted(own.items()))) for n, own in rows.items()]
    texts = [(table, own) for table, own in tables if isinstance(table, TextTable)]
    if texts:
        with out.open("w", encoding="utf-8", newline="") as file:
            _write_texts(texts, file)
    else:
        arrows = [(table, own) for table, own in tables if isinstance(table, ArrowTable)]
        write_parquet(arrows, COLUMN, out)
    return num_held_out


def _training_sources(domain: FilesDomain) -> dict[int, Source]:
    """Return the training tables of `path`; held-out splits with their own files stay as is."""
    return {n: source for n, source in enumerate(domain.sources) if source.split == "train"}


def _check_rows(source: Source, domain: FilesDomain, out: Path) -> None:
    """Raise ValueError for a column that would be overwritten, or media that would be lost."""
    table = source.table
    has_moved = domain.config.media_root is None and out.parent.resolve() != table.folder.resolve()
    for place, row in enumerate(table.rows()):
        if isinstance(row, ValueError):
            continue
        if COLUMN in row:
            raise ValueError(
                f"{table.name}:{table.number(place)} has a column {COLUMN} already. Rename it "
                "there, or filter the file it came from."
            )
        if has_moved and _names_media(row, domain):
            raise ValueError(
                f"{table.name}:{table.number(place)} names media by paths that start at "
                f"{table.folder}: got --out in {out.parent}. Write it beside its source, or set "
                "media_root for both."
            )


def _names_media(row: Mapping[str, object], domain: FilesDomain) -> bool:
    try:
        draft = read_draft(row, domain.config.columns)
    except ValueError:  # a bad row is not written
        return False
    return any(isinstance(media.source, str) for media in draft.media)


def _write_texts(
    tables: Sequence[tuple[TextTable, Mapping[int, float | None]]], file: TextIO
) -> None:
    """Write all rows to one file in the format of the first: CSV, JSON list or lines."""
    first, _ = tables[0]
    if first.header:
        writer = csv.writer(file, delimiter=first.delimiter, lineterminator="\n")
        writer.writerow([*first.header, COLUMN])
        writer.writerows(row.values() for row in _rows(tables))  # None becomes an empty cell
        return
    start, between, end = ("[\n", ",\n", "\n]\n") if holds_list(first.path) else ("", "\n", "\n")
    file.write(start)
    for number, row in enumerate(_rows(tables)):
        file.write((between if number else "") + json.dumps(row, ensure_ascii=False))
    file.write(end)


def _rows(
    tables: Sequence[tuple[TextTable, Mapping[int, float | None]]],
) -> Iterator[dict[str, object]]:
    for table, rates in tables:
        for place, rate in rates.items():
            yield {**table.row(place), COLUMN: rate}

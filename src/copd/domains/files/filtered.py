"""Some rows of a domain's files with one more column, in the format they came in. Judges none."""

from __future__ import annotations

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
"""The column that is added."""

Place = tuple[int, int]
"""Table and row."""


def check_target(domain: FilesDomain, out: Path) -> None:
    """Refuses a file that could not hold the rows, or in which they would mean something else."""
    if out.exists():
        raise ValueError(f"{out} exists already: expected a new file. Choose another --out.")
    if not out.parent.is_dir():
        raise ValueError(f"--out must be in a folder that exists: got {out}. Make the folder.")
    sources = _written(domain)
    expected = {_suffix(source) for source in sources.values()}
    if expected != {out.suffix}:
        kinds = ", ".join(sorted(expected))
        raise ValueError(
            f"the filtered file is written as its source is: got --out {out} for {kinds}. "
            + (f"Name a file that ends in {kinds}." if len(expected) == 1 else "Filter each alone.")
        )
    headers = {s.table.header for s in sources.values() if isinstance(s.table, TextTable)}
    if len(headers) > 1:
        raise ValueError(
            f"CSV files that are filtered together must have the same columns: got "
            f"{' and '.join(str(list(h)) for h in sorted(headers))}. Filter each alone."
        )
    paths = [domain.config.path] if isinstance(domain.config.path, str) else domain.config.path
    if any(Path(path).expanduser().resolve() == out.parent.resolve() for path in paths):
        raise ValueError(
            f"every file in {out.parent} would train: got --out {out} inside a folder that is a "
            "path of the domain. Write it elsewhere (with media, set media_root to the folder)."
        )
    for source in sources.values():
        _check_rows(source, domain, out)


def write_filtered(domain: FilesDomain, kept: Mapping[int, float], out: Path) -> int:
    """Writes the training problems in `kept` with their rates, in the order of their files.

    Problems that shares hold out are written too, without a rate, so that the new file has the same
    held-out splits. Returns how many those are.
    """
    rates: dict[Place, float | None] = {}
    for split in ("validation", "test"):
        for number, row in domain.places(split).tolist():
            if domain.sources[number].split == "train":
                rates[number, row] = None
    num_held_out = len(rates)
    places = domain.places("train")
    for index, rate in kept.items():
        number, row = places[index].tolist()
        rates[number, row] = rate
    chosen = {
        number: {row: rates[n, row] for n, row in sorted(rates) if n == number}
        for number in _written(domain)
    }
    tables = [(domain.sources[number].table, rows) for number, rows in chosen.items()]
    texts = [(table, rows) for table, rows in tables if isinstance(table, TextTable)]
    if texts:
        with out.open("w", encoding="utf-8", newline="") as file:
            _write_texts(texts, file)
    else:
        arrows = [(table, rows) for table, rows in tables if isinstance(table, ArrowTable)]
        write_parquet(arrows, COLUMN, out)
    return num_held_out


def _written(domain: FilesDomain) -> dict[int, Source]:
    """The tables that `path` has for training; a held-out split's own files stay as they are."""
    return {n: source for n, source in enumerate(domain.sources) if source.split == "train"}


def _suffix(source: Source) -> str:
    table = source.table
    return table.path.suffix if isinstance(table, TextTable) else ".parquet"


def _check_rows(source: Source, domain: FilesDomain, out: Path) -> None:
    """Refuses a column that would be overwritten, and media that would not be found from there."""
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
    except ValueError:  # a bad row, which is not written
        return False
    return any(isinstance(media.source, str) for media in draft.media)


def _write_texts(
    tables: Sequence[tuple[TextTable, Mapping[int, float | None]]], file: TextIO
) -> None:
    """One file of all: with a header, as one JSON list, or an object per line, as the first is."""
    first, _ = tables[0]
    if first.header:
        writer = csv.writer(file, delimiter=first.delimiter, lineterminator="\n")
        writer.writerow([*first.header, COLUMN])
        writer.writerows(row.values() for row in _rows(tables))  # None is an empty cell
        return
    is_list = holds_list(first.path)
    lines = (json.dumps(row, ensure_ascii=False) for row in _rows(tables))
    for number, line in enumerate(lines):
        before = ("[\n" if number == 0 else ",\n") if is_list else ""
        file.write(before + line + ("" if is_list else "\n"))
    if is_list:
        file.write("\n]\n")


def _rows(
    tables: Sequence[tuple[TextTable, Mapping[int, float | None]]],
) -> Iterator[dict[str, object]]:
    for table, rates in tables:
        for place, rate in rates.items():
            yield {**table.row(place), COLUMN: rate}

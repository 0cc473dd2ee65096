"""Tables of JSONL, JSON and CSV files: finds the positions of their rows."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from copd.domains.files.tables import MAX_ROW_BYTES, TextTable

MAX_LIST_BYTES = 2**28
"""Largest JSON list: unlike lines, it is read as a whole to find its entries."""

_BOM = b"\xef\xbb\xbf"


@dataclass
class _Positions:
    """Start, size and line number of the rows found so far."""

    values: array[int] = field(default_factory=lambda: array("q"))
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values) // 3

    def add(self, start: int, size: int, number: int, reason: str = "") -> None:
        if reason:
            self.broken[len(self)] = reason
        self.values.extend((start, size, number))

    def table(self, path: Path, header: tuple[str, ...] = (), delimiter: str = ",") -> TextTable:
        values = np.array(self.values, dtype=np.int64).reshape(-1, 3)
        return TextTable(path, values, self.broken, header, delimiter)


def open_text(path: Path) -> TextTable:
    """Open a file by its suffix; a .json file may hold a list, or an object per line."""
    if path.suffix in (".csv", ".tsv"):
        return _find_records(path, "\t" if path.suffix == ".tsv" else ",")
    return _find_entries(path) if holds_list(path) else _find_lines(path)


def holds_list(path: Path) -> bool:
    """Test whether a .json file is one list; else each line is an object."""
    with path.open("rb") as file:
        return path.suffix == ".json" and file.read(4096).removeprefix(_BOM).lstrip()[:1] == b"["


def _find_lines(path: Path) -> TextTable:
    """Find all lines that are not blank; a huge one is read in chunks."""
    positions, number = _Positions(), 0
    with path.open("rb") as file:
        start = _skip_bom(file)
        while line := file.readline(MAX_ROW_BYTES):
            size, is_blank, number = len(line), line.isspace(), number + 1
            while not line.endswith(b"\n") and (line := file.readline(MAX_ROW_BYTES)):
                size, is_blank = size + len(line), False
            if not is_blank:
                positions.add(start, size, number)
            start += size
    return positions.table(path)


def _skip_bom(file: BinaryIO) -> int:
    """Move to the first byte after a byte order mark; return its position."""
    return file.seek(len(_BOM) if file.read(len(_BOM)) == _BOM else 0)


def _find_entries(path: Path) -> TextTable:
    """Find the entries of one JSON list; after a syntax error the rest is one bad row."""
    size = path.stat().st_size
    if size > MAX_LIST_BYTES:
        raise ValueError(
            f"{path} is one JSON list of {size} bytes: at most {MAX_LIST_BYTES} are read at once. "
            "Write one object per line (.jsonl) instead."
        )
    positions, content = _Positions(), path.read_bytes()
    skipped = len(_BOM) if content.startswith(_BOM) else 0
    try:
        text = content[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    decoder, at, done = json.JSONDecoder(), _skip(text, text.index("[") + 1), 0
    position = skipped
    while text[at : at + 1] != "]":
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = len(text)
        begin = position + len(text[done:at].encode())
        position, done = begin + len(text[at:end].encode()), end
        number, at = len(positions) + 1, _skip(text, end)
        if text[at : at + 1] not in (",", "]"):
            reason = "ends the list: the JSON is broken here, what follows cannot be read"
            positions.add(begin, position - begin, number, reason)
            break
        positions.add(begin, position - begin, number)
        at = _skip(text, at + 1) if text[at] == "," else at
    return positions.table(path)


def _skip(text: str, at: int) -> int:
    """Return the next position that is not white space."""
    while text[at : at + 1] in (" ", "\t", "\n", "\r"):
        at += 1
    return at


def _find_records(path: Path, delimiter: str) -> TextTable:
    """Find CSV records, which may span lines; the first one names the columns."""
    csv.field_size_limit(MAX_ROW_BYTES)
    positions = _Positions()
    with path.open("rb") as file:
        feed = _Feed(file)
        reader = csv.reader(feed, delimiter=delimiter)
        header = _header(path, reader)
        while True:
            start, number = feed.position, reader.line_num + 1
            feed.start = start
            try:
                cells = next(reader, None)
            except (csv.Error, ValueError) as error:
                reason = f"is not CSV ({error}), what follows cannot be read"
                positions.add(start, feed.position - start, number, reason)
                break
            if cells is None:
                break
            if cells:
                positions.add(start, feed.position - start, number)
    return positions.table(path, header, delimiter)


def _header(path: Path, reader: Iterator[list[str]]) -> tuple[str, ...]:
    try:
        names = tuple(name.encode("latin-1").decode("utf-8") for name in next(reader, []))
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} has no readable header: {error}.") from None
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{path} must name each column once in its first line: got {list(names)!r}."
        )
    return names


class _Feed:
    """Lines for a CSV reader, and the position it has reached.

    They are decoded as Latin-1, which keeps bytes and cannot fail: only the structure matters here.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = self.start = _skip_bom(file)

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.position += len(line)
        if self.position - self.start > MAX_ROW_BYTES:
            raise ValueError(f"a record is longer than {MAX_ROW_BYTES} bytes")
        return line.decode("latin-1")

"""Rows of data files, read one at a time by their position.

A row that cannot be read raises ValueError with the reason.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_ROW_BYTES = 2**26
"""Largest row that is read; it may contain pictures."""

Row = Mapping[str, Any]


class Table(Protocol):
    """Rows by position."""

    @property
    def name(self) -> str:
        """The name in messages."""
        ...

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the rows start from."""
        ...

    @property
    def revision(self) -> str:
        """The version of a table that is not in files that the user named; "" for others."""
        ...

    def __len__(self) -> int: ...

    def number(self, index: int) -> int:
        """Return where a user finds the row: its line, or its place in a list, from 1."""
        ...

    def row(self, index: int) -> Row: ...

    def rows(self) -> Iterator[Row | ValueError]:
        """Yield all rows in order; the error of one that cannot be read."""
        ...


@dataclass(frozen=True, eq=False)
class TextTable:
    """A JSONL, JSON or CSV file, held as positions of its rows without their content."""

    path: Path
    positions: NDArray[np.int64]
    """Start and size in bytes, and line number of every row, shape `R 3`."""

    broken: Mapping[int, str] = field(default_factory=dict)
    """Unreadable rows to the reason."""

    header: tuple[str, ...] = ()
    """Column names of a CSV file."""

    delimiter: str = ","
    revision = ""

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def __len__(self) -> int:
        return len(self.positions)

    def number(self, index: int) -> int:
        return int(self.positions[index, 2])

    def row(self, index: int) -> Row:
        with self.path.open("rb") as file:
            return self._read(file, index)

    def rows(self) -> Iterator[Row | ValueError]:
        with self.path.open("rb") as file:
            for index in range(len(self)):
                try:
                    yield self._read(file, index)
                except ValueError as error:
                    yield error

    def _read(self, file: BinaryIO, index: int) -> Row:
        if index in self.broken:
            raise ValueError(self.broken[index])
        start, size, _ = self.positions[index].tolist()
        if size > MAX_ROW_BYTES:
            raise ValueError(f"is {size} bytes long, at most {MAX_ROW_BYTES} are read")
        file.seek(start)
        try:
            text = file.read(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not UTF-8 ({error.reason} at byte {error.start})") from None
        return self._parse_csv(text) if self.header else parse_object(text)

    def _parse_csv(self, text: str) -> Row:
        csv.field_size_limit(MAX_ROW_BYTES)
        try:
            lines = io.StringIO(text, newline="\n")
            cells = next(csv.reader(lines, delimiter=self.delimiter))
        except csv.Error as error:
            raise ValueError(f"is not CSV ({error})") from None
        if len(cells) != len(self.header):
            raise ValueError(f"has {len(cells)} cells, the header has {len(self.header)}")
        return dict(zip(self.header, cells, strict=True))


def parse_object(text: str) -> Row:
    """Parse a JSON object; raise ValueError for anything else."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"is not a JSON object but a {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    """Parse any JSON value, strictly: no NaN, no deep nesting, no endless numbers."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is not JSON")

"""Where a run keeps its things, and writing that a crash cannot half do.

Knows no training.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """The file has the old text or the new one, whatever happens in between."""

    def fill(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8")

    make_file_atomically(path, fill)


def make_file_atomically(path: Path, fill: Callable[[Path], None]) -> None:
    """The file is the old one or the new one: filled aside, synced, renamed."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        fill(aside)
        _sync(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def make_folder_atomically(folder: Path, fill: Callable[[Path], None]) -> None:
    """The folder is there complete or not at all: filled aside, synced, renamed.

    An older one is replaced. The place aside is a new one each time: who is still filling that of
    an earlier attempt, on a machine that was given up, finds it gone.
    """
    for given_up in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        shutil.rmtree(given_up, ignore_errors=True)
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    aside.mkdir(parents=True)
    try:
        fill(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for path in sorted(aside.rglob("*")):
        if path.is_file():
            _sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)
    _sync(folder.parent)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line, on the disk when this returns."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file of JSON objects; a last line cut off by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def truncate_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the lines that a resumed run will write again."""
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_lines(path) if keep(record)]
        write_atomically(path, "".join(kept))


def _sync(path: Path) -> None:
    """A file's content, or the names in a folder, are on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

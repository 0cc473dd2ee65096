"""Where a run keeps its things, and writing that a crash cannot half do.

Knows no training.
"""

from __future__ import annotations

import base64
import glob
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RENAMED_METRICS = {
    "clipped": "clip_ratio",
    "sampler_gap": "train_inference_mismatch",
    "silent_groups": "frac_reward_zero_std",
}
"""Metric names of earlier versions to today's: old run folders are read through this table."""


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
                yield _with_current_names(json.loads(line))


def _with_current_names(record: dict[str, Any]) -> dict[str, Any]:
    """Rename the metrics that an earlier version of copd wrote under another name."""
    branches = record.get("branches") if isinstance(record, dict) else None  # may be damaged
    if not isinstance(branches, dict):
        return record
    renamed = {branch: _renamed(metrics) for branch, metrics in branches.items()}
    return {**record, "branches": renamed}


def _renamed(metrics: Any) -> Any:
    if not isinstance(metrics, dict):
        return metrics
    parts = [(*key.rpartition("/"), value) for key, value in metrics.items()]
    return {prefix + slash + RENAMED_METRICS.get(n, n): value for prefix, slash, n, value in parts}


def truncate_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the lines that a resumed run will write again."""
    if path.exists():
        kept = [json.dumps(record) + "\n" for record in read_lines(path) if keep(record)]
        write_atomically(path, "".join(kept))


def pack_column(entries: Sequence[Any]) -> dict[str, Any]:
    """The distinct entries in order of appearance, and which of them each entry is: 16-bit numbers,
    compressed, in base64."""
    number = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    if len(number) > 2**16:
        raise ValueError(
            f"a packed list must have at most {2**16:,} distinct entries: got {len(number):,}. "
            "Evaluate fewer samples per problem."
        )
    which = np.array([number[entry] for entry in entries], dtype="<u2")
    packed = base64.b64encode(zlib.compress(which.tobytes(), 9)).decode("ascii")
    return {"distinct": list(number), "packed": packed}


def unpack_column(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inverse of `pack_column`."""
    which = np.frombuffer(zlib.decompress(base64.b64decode(value["packed"])), dtype="<u2")
    distinct = value["distinct"]
    return tuple(distinct[index] for index in which.tolist())


def _sync(path: Path) -> None:
    """A file's content, or the names in a folder, are on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

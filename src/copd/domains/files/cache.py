"""Indexes cached in the folder of a run, so that one process decodes the media for all."""

import gzip
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from copd.domains.files.index import BadRow, Index, Source, hash_text, stamp
from copd.storage import make_file_atomically

_PACKAGES = ("copd", "pillow", "av", "math-verify")
"""Packages whose versions decide which rows are usable."""


def index_path(run_dir: Path, domain: str) -> Path:
    """Return the file of a domain's index."""
    return run_dir / "index" / f"{domain}.json.gz"


def index_key(inputs: Sequence[str], sources: Sequence[Source]) -> str:
    """Hash all that decides an index but the media files: settings, data files, packages."""
    revisions = [source.table.revision for source in sources]
    return hash_text(*inputs, *revisions, *map(_version, _PACKAGES))


def cached_index(path: Path, key: str, build: Callable[[], Index], *, store: bool) -> Index:
    """Return the index in a file if it fits; else build it, and with `store` write the file."""
    index = _read(path, key)
    if index is None:
        index = build()
        if store:
            _write(path, key, index)
    return index


def _read(path: Path, key: str) -> Index | None:
    """Read an index; None if the file is missing, damaged, or of other data or settings."""
    try:
        record: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
        stamps = map(stamp, record["media"])
        if record.pop("key") != key or record["media_stamp"] != hash_text(*stamps):
            return None
        rows = {s: np.array(r, dtype=np.int64).reshape(-1, 2) for s, r in record["rows"].items()}
        bad = tuple(BadRow(**row) for row in record["bad"])
        lists = {name: tuple(record[name]) for name in ("suites", "media")}
        return Index(**{**record, **lists, "rows": rows, "bad": bad})
    except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError):
        return None


def _write(path: Path, key: str, index: Index) -> None:
    """Write an index; if the folder is not writable, other processes build their own."""
    rows = {split: rows.tolist() for split, rows in index.rows.items()}
    record = {**vars(index), "key": key, "rows": rows, "bad": [vars(row) for row in index.bad]}
    content = gzip.compress(json.dumps(record).encode(), mtime=0)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        make_file_atomically(path, lambda temporary: temporary.write_bytes(content))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

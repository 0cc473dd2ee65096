"""Files of a run: writes that a crash cannot leave half done, JSON lines, packed columns."""

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
"""Former metric names to the current ones, to read the folders of earlier versions."""


def write_atomically(path: Path, text: str) -> None:
    """Write text; after a crash the file has the old text or the new one."""
    make_file_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def make_file_atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a temporary file, sync it to disk, and rename it to `path`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        fill(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def make_folder_atomically(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a temporary folder, sync it to disk, and rename it to `folder`, replacing an older one.

    Each attempt has a temporary folder of its own, and removes those of earlier attempts: a process
    on a machine that was given up may still be writing there.
    """
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for path in sorted(temporary.rglob("*")):
        if path.is_file():
            _sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    _sync(folder.parent)


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON object per line, and sync the file to disk."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON objects, without a last line that a crash cut off."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield _with_current_names(json.loads(line))


def truncate_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the lines for which `keep` is false: a resumed run writes them again."""
    if path.exists():
        lines = [json.dumps(record) + "\n" for record in read_lines(path) if keep(record)]
        write_atomically(path, "".join(lines))


def pack_column(entries: Sequence[Any]) -> dict[str, Any]:
    """Pack a long list of few distinct entries.

    The result has the distinct entries in order of appearance, and the index of each entry in them
    as 16-bit numbers, compressed, in base64.
    """
    index = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    if len(index) > 2**16:
        raise ValueError(
            f"A packed list must have at most {2**16:,} distinct entries: got {len(index):,}. "
            "Evaluate fewer samples per problem."
        )
    indices = np.array([index[entry] for entry in entries], dtype="<u2")
    packed = base64.b64encode(zlib.compress(indices.tobytes(), 9)).decode("ascii")
    return {"distinct": list(index), "packed": packed}


def unpack_column(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the entries that `pack_column` packed."""
    indices = np.frombuffer(zlib.decompress(base64.b64decode(value["packed"])), dtype="<u2")
    return tuple(value["distinct"][index] for index in indices.tolist())


def _with_current_names(record: Any) -> Any:
    """Rename former metrics; leave a damaged record as it is."""
    if not isinstance(record, dict) or not isinstance(branches := record.get("branches"), dict):
        return record
    return {**record, "branches": {name: _renamed(own) for name, own in branches.items()}}


def _renamed(metrics: Any) -> Any:
    if not isinstance(metrics, dict):
        return metrics
    parts = [(*key.rpartition("/"), value) for key, value in metrics.items()]
    return {prefix + slash + RENAMED_METRICS.get(n, n): value for prefix, slash, n, value in parts}


def _sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

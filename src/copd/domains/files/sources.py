"""Tables per split from the paths and names in the settings of a domain."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from copd.config import FilesConfig
from copd.domains.files.hub import is_saved, open_named, open_parquet, open_saved
from copd.domains.files.tables import Table
from copd.domains.files.text import open_text
from copd.types import Split

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

_SPLIT_NAMES: Mapping[str, Split] = {
    "test": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")


def find_tables(config: FilesConfig) -> dict[Split, list[Table]]:
    """Open the tables of all splits.

    A folder or data set may have splits of its own, found by their names. A setting for a split,
    such as `test_path`, replaces that split of `path`.
    """
    found = _open_all(config.path, "path")
    own_paths: dict[Split, str | tuple[str, ...] | None] = {
        "validation": config.validation_path,
        "test": config.test_path,
    }
    for split, paths in own_paths.items():
        if paths is not None:
            tables = _open_all(paths, f"{split}_path")
            found[split] = tables[split] or list(chain.from_iterable(tables.values()))
    if not found["train"]:
        raise ValueError(
            f"path must have problems to train on: got {config.path!r}, which has only files for "
            "validation or test. Name the training file."
        )
    return found


def _open_all(paths: str | Sequence[str], key: str) -> dict[Split, list[Table]]:
    found: dict[Split, list[Table]] = {"train": [], "validation": [], "test": []}
    for path in [paths] if isinstance(paths, str) else paths:
        for split, table in _open(path, key):
            found[split].append(table)
    return found


def _open(name: str, key: str) -> Iterator[tuple[Split, Table]]:
    path = Path(name).expanduser()
    if path.is_file():
        yield "train", open_file(path)
        return
    if path.is_dir():
        tables = open_saved(path) if is_saved(path) else _in_folder(path, key)
    elif _HUB_NAME.fullmatch(name) and not Path(name.split("/")[0]).exists():
        tables = open_named(name)
    else:
        raise ValueError(
            f"{key} must be a file, a folder or a data set: got {name!r}. "
            "Check the path; a data set of the hub is named 'owner/name'."
        )
    for part, table in tables.items():
        yield split_of(part), table


def open_file(path: Path) -> Table:
    """Open one data file, by its suffix."""
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{path} is of a kind copd does not read: got {path.suffix or 'no suffix'}, expected "
            f"one of {', '.join(SUFFIXES)}. Convert it, or rename it to what it is."
        )
    return open_parquet(path) if path.suffix == ".parquet" else open_text(path)


def _in_folder(folder: Path, key: str) -> Mapping[str, Table]:
    files = sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not files:
        raise ValueError(
            f"{key} must hold data files: got folder {str(folder)!r} without any of "
            f"{', '.join(SUFFIXES)}. Name the file itself."
        )
    return {file.name: open_file(file) for file in files}


def split_of(name: str) -> Split:
    """Return the split in a name such as `test-00000`, `val.2` or `validation`; else `train`."""
    return _SPLIT_NAMES.get(re.split(r"[^a-z]", name.lower())[0], "train")

"""Tables of Parquet files and Hugging Face data sets; the only module that imports `datasets`.

Rows are memory-mapped and read without the decoders of that library, so that pictures stay bytes
and paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copd.domains.files.tables import Row

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


@dataclass(frozen=True, eq=False)
class ArrowTable:
    """One split of a data set."""

    name: str
    folder: Path
    data: Dataset
    """With its format set to "arrow"."""

    @property
    def revision(self) -> str:
        """Names and sizes of the Arrow files; those of the hub are in a folder per revision."""
        files = [Path(file["filename"]) for file in self.data.cache_files]
        return " ".join(f"{f.parent.name}/{f.name}:{f.stat().st_size}" for f in files)

    def __len__(self) -> int:
        return len(self.data)

    def number(self, index: int) -> int:
        return index + 1

    def row(self, index: int) -> Row:
        try:
            part: Any = self.data[index]
            [row] = part.to_pylist()
        except Exception as error:  # Arrow has an exception of its own for every kind of damage
            raise ValueError(f"cannot be read ({_brief(error)})") from None
        return row

    def rows(self) -> Iterator[Row | ValueError]:
        for index in range(len(self)):
            try:
                yield self.row(index)
            except ValueError as error:
                yield error


def open_parquet(path: Path) -> ArrowTable:
    """Open a Parquet file, through the library's cache of memory-mapped files."""
    with _reading(f"{path} cannot be read as Parquet"):
        from datasets import Dataset

        data: Any = Dataset.from_parquet(str(path))
    return _table(str(path), path.parent, data)


def open_saved(folder: Path) -> Mapping[str, ArrowTable]:
    """Open a folder that `save_to_disk` wrote, by split; without splits it is "train"."""
    with _reading(f"{folder} cannot be read as a saved data set"):
        from datasets import load_from_disk

        loaded = load_from_disk(str(folder))
    return _splits(loaded, str(folder), folder)


def open_named(name: str) -> Mapping[str, ArrowTable]:
    """Open a data set of the hub, `owner/name` or `owner/name:subset`, by split."""
    repository, _, subset = name.partition(":")
    with _reading(f"data set {name!r} cannot be loaded"):
        from datasets import load_dataset

        loaded: Any = load_dataset(repository, subset or None)
    return _splits(loaded, name, Path.cwd())


def write_parquet(
    tables: Sequence[tuple[ArrowTable, Mapping[int, float | None]]], column: str, path: Path
) -> None:
    """Write some rows of some tables, by their positions, with a new column of numbers."""
    from datasets import Value, concatenate_datasets

    parts = [
        table.data.with_format(None)
        .select(list(numbers))
        .add_column(column, list(numbers.values()), feature=Value("float64"))
        for table, numbers in tables
    ]
    try:
        together = concatenate_datasets(parts)
    except ValueError as error:
        raise ValueError(
            f"data sets that are filtered together must have the same columns: got "
            f"{_brief(error)}. Filter each alone."
        ) from None
    together.to_parquet(str(path))


def is_saved(folder: Path) -> bool:
    """Test whether `save_to_disk` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _splits(loaded: Dataset | DatasetDict, name: str, folder: Path) -> Mapping[str, ArrowTable]:
    from datasets import DatasetDict

    if not isinstance(loaded, DatasetDict):
        return {"train": _table(name, folder, loaded)}
    return {str(split): _table(f"{name}[{split}]", folder, data) for split, data in loaded.items()}


def _table(name: str, folder: Path, data: Dataset) -> ArrowTable:
    return ArrowTable(name, folder, data.with_format("arrow"))


@contextmanager
def _reading(failure: str) -> Iterator[None]:
    """Turn any error of the library into a ValueError with a sentence."""
    try:
        from datasets.utils.logging import disable_progress_bar, set_verbosity
    except ImportError:
        raise ValueError(
            f"{failure}: the library `datasets` is not installed. Run pip install 'copd[data]'."
        ) from None
    disable_progress_bar()
    set_verbosity(50)  # its warnings and errors are raised as exceptions too
    try:
        yield
    except Exception as error:  # the library passes on whatever its readers raise
        raise ValueError(f"{failure}: {_brief(error)}. {_remedy(error)}") from None


def _remedy(error: Exception) -> str:
    if isinstance(error, ConnectionError):
        return (
            "Connect to the hub once (then it is in the cache), or download the data set elsewhere "
            "and name its folder."
        )
    if "config" in str(error).lower():  # the library's word for subset
        return "Name a subset of it: 'owner/name:subset'."
    return "Check the path or name."


def _brief(error: Exception) -> str:
    """Return the start of a message; its second line lists the choices."""
    text = " ".join(str(error).strip().splitlines()[:2]).rstrip(".")
    return f"{type(error).__name__} {text[:200]}".strip()

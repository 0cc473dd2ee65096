"""Problems from the user's own files. No model; what is read is never trusted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copd.config import FilesConfig
from copd.domains.files.clips import ClipBudget
from copd.domains.files.draft import Draft, read_draft
from copd.domains.files.index import Index, Source, build_index
from copd.domains.files.media import MediaReader
from copd.domains.files.sources import SUFFIXES, Tables, find_tables
from copd.domains.files.tables import Table
from copd.types import ContentPart, Message, Problem, ProblemId, Split, Text
from copd.verifiers import Verifier, check_functions, load_verifier

NUM_SHOWN = 5
"""Bad rows that an error message lists."""


@dataclass(frozen=True, eq=False)
class FilesDomain:
    """Problems that are read when they are asked for; pickled, it is only their places."""

    name: str
    config: FilesConfig
    sources: tuple[Source, ...]
    index: Index
    verifier: Verifier

    @property
    def suites(self) -> tuple[str, ...]:
        return self.index.suites

    @property
    def modality(self) -> str:
        return self.index.modality

    def num_problems(self, split: Split) -> int:
        return len(self.places(split))

    def places(self, split: Split) -> NDArray[np.int64]:
        """Table and row of every problem of a split, shape `P 2`."""
        limit = {
            "train": self.config.num_train,
            "validation": self.config.num_validation,
            "test": self.config.num_test,
        }[split]
        return self.index.rows[split][:limit]

    def problem(self, split: Split, index: int) -> Problem:
        if not 0 <= index < self.num_problems(split):
            raise IndexError(
                f"domain {self.name!r} has {self.num_problems(split)} {split} problems: "
                f"got index {index}"
            )
        number, place = self.places(split)[index].tolist()
        source = self.sources[number]
        try:
            draft = read_draft(source.table.row(place), self.config.columns)
            messages = tuple(self._messages(draft, source.reader))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{source.table.name}:{source.table.number(place)} could be read before and "
                f"cannot now: {error}. Run `copd data` on it."
            ) from None
        suite = self.name if draft.suite is None else draft.suite
        return Problem(ProblemId(self.name, split, index), suite, messages, draft.answer)

    def verify(self, problem: Problem, text: str) -> float:
        return self.verifier.reward(text, problem.answer)

    def verify_all(self, problems: Sequence[Problem], texts: Sequence[str]) -> list[float]:
        pairs = [(text, p.answer) for p, text in zip(problems, texts, strict=True)]
        return self.verifier.rewards(pairs)

    def extract_answer(self, problem: Problem, text: str) -> str:
        """What the verifier takes for the answer."""
        return self.verifier.extract_answer(text)

    def _messages(self, draft: Draft, reader: MediaReader) -> Iterator[Message]:
        """The turns with their media loaded, and what the configuration adds to them."""
        system, suffix = self.config.system_prompt, self.config.prompt_suffix
        if system is not None and draft.turns[0].role != "system":
            yield Message("system", (Text(system),))
        for turn in draft.turns:
            parts: list[ContentPart] = [
                Text(p) if isinstance(p, str) else reader.read(p) for p in turn.content
            ]
            if suffix and turn is draft.turns[-1]:
                parts = _extended(parts, suffix)
            yield Message(turn.role, tuple(parts))


def _extended(parts: list[ContentPart], suffix: str) -> list[ContentPart]:
    last = parts[-1] if parts else None
    if isinstance(last, Text):
        return [*parts[:-1], Text(last.text + suffix)]
    return [*parts, Text(suffix)]


def open_files(name: str, config: FilesConfig) -> FilesDomain:
    """The domain as it is, bad rows and all; they are in its index and never among its problems.

    The rows of unchanged files are looked at once per process.
    """
    seen = {"num_train", "num_validation", "num_test", "drop_bad", "fingerprint"}
    sources, index = _examined(name, config.model_dump_json(exclude=seen), _stamps(config))
    return FilesDomain(name, config, sources, index, load_verifier(config.verifier))


def open_usable(name: str, config: FilesConfig) -> FilesDomain:
    """The domain where it has no bad rows or may drop them, however many problems are left."""
    domain = open_files(name, config)
    _check_rows(domain)
    return domain


def load_files(name: str, config: FilesConfig) -> FilesDomain:
    """The domain for a run, which refuses what it cannot use."""
    domain = open_usable(name, config)
    _check_sizes(domain)
    if config.fingerprint not in (None, domain.index.fingerprint):
        raise ValueError(
            f"the problems of domain {name!r} are not those the run began with: got fingerprint "
            f"{domain.index.fingerprint}, expected {config.fingerprint}. Restore the files, or "
            "start a new run."
        )
    return domain


def with_sizes(name: str, config: FilesConfig) -> FilesConfig:
    """The settings with all that the data decide filled in."""
    domain = load_files(name, config)
    check_functions(domain.verifier)
    return config.model_copy(
        update={
            "num_train": domain.num_problems("train"),
            "num_validation": domain.num_problems("validation"),
            "num_test": domain.num_problems("test"),
            "fingerprint": domain.index.fingerprint,
        }
    )


def remarks(index: Index) -> Iterator[str]:
    """What a person should know of usable problems before training on them."""
    if index.num_leaked:
        yield f"{index.num_leaked} problems are left out: a held-out split asks the same"
    if index.num_repeated:
        yield f"{index.num_repeated} problems repeat an earlier one of their split"


def _check_rows(domain: FilesDomain) -> None:
    bad = domain.index.bad
    if not bad or domain.config.drop_bad:
        return
    rest = [f"... and {len(bad) - NUM_SHOWN} more"] if len(bad) > NUM_SHOWN else []
    raise ValueError(
        "\n".join(
            [
                f"domain {domain.name!r} must have problems that can all be used: got {len(bad)} "
                f"bad ones of {domain.index.num_rows}. Correct them (`copd data` lists all), or "
                f"set domains.{domain.name}.drop_bad = true.",
                *(str(row) for row in bad[:NUM_SHOWN]),
                *rest,
            ]
        )
    )


def _check_sizes(domain: FilesDomain) -> None:
    config = domain.config
    wanted: dict[Split, int | None] = {
        "train": config.num_train,
        "validation": config.num_validation,
        "test": config.num_test,
    }
    for split, number in wanted.items():
        there = len(domain.index.rows[split])
        if there < (number or 1):
            key = f"domains.{domain.name}"
            more = (
                f"lower {key}.test_share"
                if split == "train"
                else f"raise {key}.{split}_share, or name {key}.{split}_path"
            )
            raise ValueError(
                f"domain {domain.name!r} has {there} {split} problems: {key} asks for "
                f"{number or 'at least 1'}. Add problems, or {more}."
            )


@lru_cache(maxsize=16)
def _examined(
    name: str, settings: str, stamps: tuple[object, ...]
) -> tuple[tuple[Source, ...], Index]:
    config = FilesConfig.model_validate_json(settings)
    sources = tuple(_sources(find_tables(config), config))
    return sources, build_index(sources, config, load_verifier(config.verifier), name)


def _sources(tables: Tables, config: FilesConfig) -> Iterator[Source]:
    budget = ClipBudget(config.fps, config.max_frames, config.max_pixels)
    for split, found in tables.items():
        for table in found:
            root = _media_root(table, config).resolve()
            folder = root if config.media_root else table.folder.resolve()
            yield Source(table, split, MediaReader(root, folder, config.max_pixels, budget))


def _media_root(table: Table, config: FilesConfig) -> Path:
    if config.media_root is None:
        return table.folder
    root = Path(config.media_root).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"media_root must be a folder: got {config.media_root!r}, which is none. "
            "Check the path."
        )
    return root


def _stamps(config: FilesConfig) -> tuple[object, ...]:
    """Changes when a data file does; pictures and clips are not looked at."""
    found: list[object] = []
    for paths in (config.path, config.validation_path, config.test_path):
        for path in [paths] if isinstance(paths, str) else paths or ():
            place = Path(path).expanduser()
            inside = [p for p in sorted(place.rglob("*")) if p.suffix in (*SUFFIXES, ".arrow")]
            for file in [place, *inside] if os.path.lexists(place) else []:
                status = file.stat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)

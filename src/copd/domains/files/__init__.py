"""Problems from the user's own files, whose content is never trusted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from copd.config import FilesConfig
from copd.domains.base import check_index
from copd.domains.files.cache import cached_index, index_key, index_path
from copd.domains.files.clips import ClipBudget
from copd.domains.files.draft import Draft, read_draft
from copd.domains.files.index import SPLITS, Index, Source, build_index, stamp
from copd.domains.files.media import MediaReader
from copd.domains.files.sources import SUFFIXES, find_tables
from copd.domains.files.tables import Table
from copd.types import ContentPart, Message, Problem, ProblemId, Split, Text
from copd.verifiers import Verifier, check_functions, load_verifier

NUM_SHOWN = 5
"""Bad rows that an error message lists."""

_NOT_INDEXED = {"num_train", "num_validation", "num_test", "drop_bad", "fingerprint"}
"""Settings that do not change the index."""


@dataclass(frozen=True, eq=False)
class FilesDomain:
    """Problems that are read from their files when they are needed.

    It holds positions in files and no content, so it is small when pickled.
    """

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
        """Return table and row of every problem of a split, shape `P 2`."""
        return self.index.rows[split][: _limit(self.config, split)]

    def problem(self, split: Split, index: int) -> Problem:
        check_index(self, split, index)
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
        return self.verifier.extract_answer(text)

    def measured_config(self) -> FilesConfig:
        """Return the settings with all sizes and the fingerprint filled in."""
        check_functions(self.verifier)
        sizes = {f"num_{split}": self.num_problems(split) for split in SPLITS}
        return self.config.model_copy(update=sizes | {"fingerprint": self.index.fingerprint})

    def _messages(self, draft: Draft, reader: MediaReader) -> Iterator[Message]:
        """Yield the turns with their media loaded, and with system prompt and suffix."""
        system, suffix = self.config.system_prompt, self.config.prompt_suffix
        if system is not None and draft.turns[0].role != "system":
            yield Message("system", (Text(system),))
        for turn in draft.turns:
            parts: list[ContentPart] = [
                Text(p) if isinstance(p, str) else reader.read(p) for p in turn.content
            ]
            if suffix and turn is draft.turns[-1]:
                last = parts[-1] if parts else None
                if isinstance(last, Text):
                    parts[-1] = Text(last.text + suffix)
                else:
                    parts.append(Text(suffix))
            yield Message(turn.role, tuple(parts))


def _limit(config: FilesConfig, split: Split) -> int | None:
    return getattr(config, f"num_{split}")


def open_files(
    name: str, config: FilesConfig, run_dir: Path | None = None, *, store: bool = False
) -> FilesDomain:
    """Open a domain; its index lists bad rows, which are never among its problems.

    The index of unchanged files is built once per process. It is read from `run_dir` if one is
    stored there that fits; else, with `store`, it is written there for other processes.
    """
    settings, stamps = config.model_dump_json(exclude=_NOT_INDEXED), tuple(_stamps(config))
    sources = _sources(settings, stamps)
    if run_dir is None:
        index = _index(name, settings, stamps)
    else:
        key = index_key((name, settings, *stamps), sources)
        path = index_path(run_dir, name)
        index = cached_index(path, key, lambda: _index(name, settings, stamps), store=store)
    return FilesDomain(name, config, sources, index, load_verifier(config.verifier))


def open_usable(name: str, config: FilesConfig) -> FilesDomain:
    """Open a domain with any number of problems; raise ValueError for bad rows it may not drop."""
    domain = open_files(name, config)
    _check_rows(domain)
    return domain


def load_files(
    name: str, config: FilesConfig, run_dir: Path | None = None, *, store: bool = False
) -> FilesDomain:
    """Open a domain for a run; raise ValueError if its problems cannot be used.

    The index is read from or stored in `run_dir`, as in `open_files`.
    """
    domain = open_files(name, config, run_dir, store=store)
    _check_rows(domain)
    _check_sizes(domain)
    if config.fingerprint not in (None, domain.index.fingerprint):
        raise ValueError(
            f"the problems of domain {name!r} are not those the run began with: got fingerprint "
            f"{domain.index.fingerprint}, expected {config.fingerprint}. Restore the files, or "
            "start a new run."
        )
    return domain


def remarks(index: Index) -> Iterator[str]:
    """Yield what a user should know about the usable problems before training on them."""
    if index.num_leaked:
        yield f"{index.num_leaked} problems are left out: a held-out split has the same prompt"
    if index.num_repeated:
        yield f"{index.num_repeated} problems repeat an earlier one of their split"


def _check_rows(domain: FilesDomain) -> None:
    bad = domain.index.bad
    if not bad or domain.config.drop_bad:
        return
    lines = [
        f"domain {domain.name!r} must have problems that can all be used: got {len(bad)} bad ones "
        f"of {domain.index.num_rows}. Correct them (`copd data` lists all), or set "
        f"domains.{domain.name}.drop_bad = true.",
        *map(str, bad[:NUM_SHOWN]),
    ]
    if len(bad) > NUM_SHOWN:
        lines.append(f"... and {len(bad) - NUM_SHOWN} more")
    raise ValueError("\n".join(lines))


def _check_sizes(domain: FilesDomain) -> None:
    for split in SPLITS:
        limit, available = _limit(domain.config, split), len(domain.index.rows[split])
        if available < (limit or 1):
            key = f"domains.{domain.name}"
            more = (
                f"lower {key}.test_share"
                if split == "train"
                else f"raise {key}.{split}_share, or name {key}.{split}_path"
            )
            raise ValueError(
                f"domain {domain.name!r} has {available} {split} problems: {key} asks for "
                f"{limit or 'at least 1'}. Add problems, or {more}."
            )


@lru_cache(maxsize=16)
def _sources(settings: str, stamps: tuple[str, ...]) -> tuple[Source, ...]:
    config = FilesConfig.model_validate_json(settings)
    budget = ClipBudget(config.fps, config.max_frames, config.max_pixels)
    sources = []
    for split, tables in find_tables(config).items():
        for table in tables:
            root = _media_root(table, config).resolve()
            folder = root if config.media_root else table.folder.resolve()
            reader = MediaReader(root, folder, config.max_pixels, budget)
            sources.append(Source(table, split, reader))
    return tuple(sources)


@lru_cache(maxsize=16)
def _index(name: str, settings: str, stamps: tuple[str, ...]) -> Index:
    config, sources = FilesConfig.model_validate_json(settings), _sources(settings, stamps)
    return build_index(sources, config, load_verifier(config.verifier), name)


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


def _stamps(config: FilesConfig) -> Iterator[str]:
    """Yield the stamps of all data files; media files are not among them."""
    for paths in (config.path, config.validation_path, config.test_path):
        for path in [paths] if isinstance(paths, str) else paths or ():
            place = Path(path).expanduser()
            inside = [p for p in sorted(place.rglob("*")) if p.suffix in (*SUFFIXES, ".arrow")]
            for file in [place] if place.is_file() else inside:
                yield f"{file} {stamp(str(file))}"

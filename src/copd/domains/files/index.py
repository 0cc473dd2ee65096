"""The index of a domain's rows: which are usable, repeated or leaked, and the split of each.

It holds a few numbers per problem and none of the content.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from copd.config import FilesConfig
from copd.domains.files.draft import Draft, read_draft
from copd.domains.files.media import MediaReader
from copd.domains.files.tables import Row, Table
from copd.types import Split
from copd.verifiers import Verifier

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MAX_SUITES = 100

_MODALITIES = ("text", "image", "video")


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used."""

    table: str
    number: int
    reason: str

    def __str__(self) -> str:
        return f"{self.table}:{self.number}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Index:
    """What reading all rows of a domain finds."""

    rows: Mapping[Split, NDArray[np.int64]]
    """Table and row of every problem, shape `P 2`. Splits with their own files keep the order of
    the files; the others, and the training problems beside them, are in the order of their keys."""

    num_rows: int
    bad: tuple[BadRow, ...]
    num_repeated: int
    """Problems with the prompt of an earlier one of their split, which are not left out."""

    num_leaked: int
    """Problems left out because a later split has the same prompt."""

    suites: tuple[str, ...]
    modality: str
    fingerprint: str
    """Changes with any prompt or answer."""

    media: tuple[str, ...]
    """Paths of all media files that rows name, whether or not they exist."""

    media_stamp: str
    """Hash of the sizes and modification times of `media` when they were read."""


@dataclass(frozen=True)
class Source:
    """A table, the split it is for, and the reader of its media."""

    table: Table
    split: Split
    reader: MediaReader


@dataclass
class _Found:
    """Usable and bad rows found so far."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    """Key, table and place of every usable row."""

    bad: list[BadRow] = field(default_factory=list)
    suites: set[str] = field(default_factory=set)
    level: int = 0
    digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=8))
    media: dict[str, str] = field(default_factory=dict)
    """Path of a media file to its stamp."""


def build_index(
    sources: Sequence[Source], config: FilesConfig, verifier: Verifier, default_suite: str
) -> Index:
    """Read all rows of all tables, and decode their media if `check_media` is set."""
    found = _Found()
    for number, source in enumerate(sources):
        for place, row in enumerate(source.table.rows()):
            try:
                draft, key = _examine(row, source.reader, config, verifier, found.media)
                found.suites.add(_suite(draft, default_suite, found.suites))
            except ValueError as error:
                line = source.table.number(place)
                found.bad.append(BadRow(source.table.name, line, _one_line(str(error))))
                continue
            found.rows.extend((key, number, place))
            kinds = [_MODALITIES.index(media.kind) for media in draft.media]
            found.level = max(found.level, *kinds, 0)
            found.digest.update(f"{key} {draft.answer}\n".encode())
    return _index(found, sources, config)


def stamp(path: str) -> str:
    """Return size and modification time of a file, by which changes are noticed; "" if missing."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def hash_text(*parts: str) -> str:
    """Return a hash of a sequence of strings."""
    return hashlib.blake2b(
        "\0".join(parts).encode(errors="backslashreplace"), digest_size=16
    ).hexdigest()


def _one_line(text: str, limit: int = 300) -> str:
    """Shorten a reason, which may quote untrusted text."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."


def _examine(
    row: Row | ValueError,
    reader: MediaReader,
    config: FilesConfig,
    verifier: Verifier,
    stamps: dict[str, str],
) -> tuple[Draft, int]:
    """Return the problem of a row and its key, and add the stamps of its media.

    Raise ValueError if the row cannot be used.
    """
    if isinstance(row, ValueError):
        raise row
    draft = read_draft(row, config.columns)
    if reference_error := verifier.reference_error(draft.answer):
        raise ValueError(
            f"{reference_error}: the verifier {config.verifier.type!r} could never match it"
        )
    for media in draft.media:
        if isinstance(media.source, str) and (path := reader.path(media.source)):
            stamps.setdefault(str(path), stamp(str(path)))
    key = draft.key(reader.identify)
    if config.check_media:
        for media in draft.media:
            reader.read(media)
    return draft, key


def _suite(draft: Draft, default: str, known: set[str]) -> str:
    suite = default if draft.suite is None else draft.suite
    if suite not in known and len(known) >= MAX_SUITES:
        raise ValueError(f"is of suite {suite[:40]!r}, beyond the {MAX_SUITES} that are reported")
    return suite


def _index(found: _Found, sources: Sequence[Source], config: FilesConfig) -> Index:
    """Assign the usable rows to splits."""
    keys, tables, places = np.array(found.rows, dtype=np.int64).reshape(-1, 3).T
    given: set[Split] = {source.split for source in sources}
    own = np.array([SPLITS.index(source.split) for source in sources], dtype=np.int64)
    splits = own[tables] if len(tables) else tables
    splits = np.where(splits == 0, _by_share(keys, given, config), splits)
    is_leaked = _leaked(keys, splits)
    rows: dict[Split, NDArray[np.int64]] = {}
    num_repeated = 0
    for level, split in enumerate(SPLITS):
        members = np.flatnonzero(~is_leaked & (splits == level))
        num_repeated += len(members) - len(np.unique(keys[members]))
        if split not in given or (split == "train" and given != set(SPLITS)):
            members = members[np.argsort(keys[members], kind="stable")]
        rows[split] = np.stack([tables[members], places[members]], axis=1)
    return Index(
        rows=rows,
        num_rows=len(keys) + len(found.bad),
        bad=tuple(found.bad),
        num_repeated=num_repeated,
        num_leaked=int(is_leaked.sum()),
        suites=tuple(sorted(found.suites)),
        modality=_MODALITIES[found.level],
        fingerprint=found.digest.hexdigest(),
        media=tuple(found.media),
        media_stamp=hash_text(*found.media.values()),
    )


def _by_share(keys: NDArray[np.int64], given: set[Split], config: FilesConfig) -> NDArray[np.int64]:
    """Split the rows of `path` by ranges of their keys: the lowest test, the highest validation.

    The split of a row depends on its own prompt alone, so added rows move no other.
    """
    place = keys / float(2**63)
    is_test = (place < config.test_share) & ("test" not in given)
    is_validation = (place >= 1.0 - config.validation_share) & ("validation" not in given)
    return np.where(is_test, 2, np.where(is_validation, 1, 0))


def _leaked(keys: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find rows whose key occurs in a later split: training must not see held-out prompts."""
    is_leaked = np.zeros(len(keys), dtype=np.bool_)
    for level in (0, 1):
        is_leaked |= (splits == level) & np.isin(keys, keys[splits > level])
    return is_leaked

"""Looks at every row once: which can be used, what is asked twice, and which split each is in.

Keeps a few numbers per problem and no content.
"""

from __future__ import annotations

import hashlib
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
    """What is known of a domain's rows."""

    rows: Mapping[Split, NDArray[np.int64]]
    """Table and row of every problem, shape `P 2`; see `_order`."""

    num_rows: int
    bad: tuple[BadRow, ...]
    num_repeated: int
    """Problems that ask what an earlier one of their split asks; they stay."""

    num_leaked: int
    """Problems left out because a split further from training asks the same."""

    suites: tuple[str, ...]
    modality: str
    fingerprint: str
    """Changes with any question or answer."""


@dataclass(frozen=True)
class Source:
    """A table, the split it was given for, and how its media are read."""

    table: Table
    split: Split
    reader: MediaReader


@dataclass
class _Seen:
    """Usable rows while they are being found."""

    keys: array[int] = field(default_factory=lambda: array("q"))
    tables: array[int] = field(default_factory=lambda: array("q"))
    rows: array[int] = field(default_factory=lambda: array("q"))
    bad: list[BadRow] = field(default_factory=list)
    suites: set[str] = field(default_factory=set)
    level: int = 0
    digest: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=8))


def build_index(
    sources: Sequence[Source], config: FilesConfig, verifier: Verifier, default_suite: str
) -> Index:
    """Reads all rows of all tables; media are decoded if the configuration says so."""
    seen = _Seen()
    for number, source in enumerate(sources):
        for place, row in enumerate(source.table.rows()):
            try:
                draft, key = _examine(row, source.reader, config, verifier)
                seen.suites.add(_suite(draft, default_suite, seen.suites))
            except ValueError as error:
                where = source.table.number(place)
                seen.bad.append(BadRow(source.table.name, where, _one_line(str(error))))
                continue
            seen.keys.append(key)
            seen.tables.append(number)
            seen.rows.append(place)
            kinds = [_MODALITIES.index(media.kind) for media in draft.media]
            seen.level = max(seen.level, *kinds, 0)
            seen.digest.update(f"{key} {draft.answer}\n".encode())
    return _finished(seen, sources, config)


def _one_line(text: str, limit: int = 300) -> str:
    """A reason may quote what a stranger wrote."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."


def _examine(
    row: Row | ValueError, reader: MediaReader, config: FilesConfig, verifier: Verifier
) -> tuple[Draft, int]:
    """The problem of a row and its key, if nothing is wrong with it."""
    if isinstance(row, ValueError):
        raise row
    draft = read_draft(row, config.columns)
    if reference_error := verifier.reference_error(draft.answer):
        raise ValueError(
            f"{reference_error}: the verifier {config.verifier.type!r} could never match it"
        )
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


def _finished(seen: _Seen, sources: Sequence[Source], config: FilesConfig) -> Index:
    keys, tables, rows = (np.array(a, dtype=np.int64) for a in (seen.keys, seen.tables, seen.rows))
    given: set[Split] = {source.split for source in sources}
    own = np.array([SPLITS.index(source.split) for source in sources], dtype=np.int64)
    splits = own[tables] if len(tables) else tables
    splits = np.where(splits == 0, _by_share(keys, given, config), splits)
    kept = _not_leaked(keys, splits)
    found: dict[Split, NDArray[np.int64]] = {}
    num_repeated = 0
    for level, split in enumerate(SPLITS):
        members = np.flatnonzero(kept & (splits == level))
        num_repeated += len(members) - len(np.unique(keys[members]))
        if split not in given or (split == "train" and given != set(SPLITS)):
            members = members[np.argsort(keys[members], kind="stable")]
        found[split] = np.stack([tables[members], rows[members]], axis=1)
    return Index(
        rows=found,
        num_rows=len(keys) + len(seen.bad),
        bad=tuple(seen.bad),
        num_repeated=num_repeated,
        num_leaked=int((~kept).sum()),
        suites=tuple(sorted(seen.suites)),
        modality=_MODALITIES[seen.level],
        fingerprint=seen.digest.hexdigest(),
    )


def _by_share(keys: NDArray[np.int64], given: set[Split], config: FilesConfig) -> NDArray[np.int64]:
    """Splits of the rows of `path`, by fixed zones of their keys: test below, validation above.

    A row's split depends on nothing but its own question, so rows that are added move no other.
    """
    place = keys / float(2**63)
    is_test = (place < config.test_share) & ("test" not in given)
    is_validation = (place >= 1.0 - config.validation_share) & ("validation" not in given)
    return np.where(is_test, 2, np.where(is_validation, 1, 0))


def _not_leaked(keys: NDArray[np.int64], splits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """False where a later split has the same key: what is measured is not learned."""
    later = np.zeros(len(keys), dtype=np.bool_)
    for level in (0, 1):
        later |= (splits == level) & np.isin(keys, keys[splits > level])
    return ~later

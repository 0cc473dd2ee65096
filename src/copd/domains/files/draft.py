"""The turns, media and answer of a row, before its media are loaded.

A row that cannot be used raises ValueError with the reason.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from copd.config import ColumnsConfig
from copd.domains.files.tables import Row, parse_json

Kind = Literal["image", "video"]

MAX_MEDIA = 256
"""Largest number of pictures and clips of one problem."""

_KNOWN: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "problem", "question", "messages"),
    "answer": ("reward_model.ground_truth", "answer", "solution"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "suite": ("suite", "data_source"),
}
_ROLES = ("system", "user", "assistant")
_MARK = re.compile(r"<(image|video)>")
_CONTROL = re.compile(r"<\|\w{1,40}\|>")
_DATA_URI = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,")
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
"""First characters of PNG, JPEG, GIF and WebP pictures in base64."""


@dataclass(frozen=True)
class Media:
    """A picture or a clip that is not loaded."""

    kind: Kind
    source: str | bytes
    """A path, or the content of a file."""


@dataclass(frozen=True)
class Turn:
    """One chat turn."""

    role: str
    content: tuple[str | Media, ...]


@dataclass(frozen=True)
class Draft:
    """A problem before its media are loaded."""

    turns: tuple[Turn, ...]
    answer: str
    suite: str | None

    @property
    def media(self) -> Iterator[Media]:
        return (part for turn in self.turns for part in turn.content if isinstance(part, Media))

    def key(self, identify: Callable[[Media], str]) -> int:
        """Hash the prompt, without the answer, to 63 bits; `identify` names the media."""
        parts = [
            [t.role, *([p] if isinstance(p, str) else [p.kind, identify(p)] for p in t.content)]
            for t in self.turns
        ]
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1


def read_draft(row: Row, columns: ColumnsConfig) -> Draft:
    """Read the problem of a row from its configured or known columns."""
    *before, last = _turns(_find(row, columns, "prompt", required=True))
    answer = _find(row, columns, "answer")
    if answer is None and before and last.role == "assistant":
        answer = "".join(part for part in last.content if isinstance(part, str))
        *before, last = before
    if answer is None:
        answer = _find(row, columns, "answer", required=True)
    if last.role != "user":
        raise ValueError(f"has no question: its last turn is the {last.role}'s")
    media = [*_media(row, columns, "images", "image"), *_media(row, columns, "videos", "video")]
    suite = _find(row, columns, "suite")
    turns = _with_media((*before, last), media)
    if not any(isinstance(p, Media) or p.strip() for turn in turns for p in turn.content):
        raise ValueError("has an empty prompt")
    return Draft(turns, _answer(answer), None if suite is None else _checked(str(suite), "suite"))


def _find(row: Row, columns: ColumnsConfig, role: str, *, required: bool = False) -> Any:
    """Return the value of the configured or first known column; empty cells count as absent."""
    configured: str | None = getattr(columns, role)
    names = _KNOWN[role] if configured is None else (configured,)
    for name in names:
        value = _lookup(row, name)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return value
    if required:
        expected, present = " or ".join(names), ", ".join(map(str, list(row)[:12])) or "no columns"
        raise ValueError(f"has no {role}: expected a value in {expected}, got {present[:200]}")
    return None


def _lookup(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    key, _, rest = name.partition(".")
    below = row.get(key) if rest else None
    if isinstance(below, str) and below.startswith("{"):
        below = _structure(below)
    return _lookup(below, rest) if isinstance(below, dict) else None


def _structure(text: str) -> Any:
    """Parse a list or table in a cell; return the text itself if it is not JSON."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _turns(value: Any) -> tuple[Turn, ...]:
    if isinstance(value, str) and re.match(r'\s*\[\s*\{\s*"', value):
        parsed = _structure(value)
        is_chat = isinstance(parsed, list) and all(
            isinstance(turn, dict) and "role" in turn for turn in parsed
        )
        value = parsed if is_chat else value
    if isinstance(value, str):
        return (Turn("user", (_checked(value, "prompt"),)),)
    if not isinstance(value, list) or not value:
        raise ValueError(f"has a prompt of type {type(value).__name__}: expected text or messages")
    return tuple(_turn(turn) for turn in value)


def _turn(value: Any) -> Turn:
    if not isinstance(value, dict) or value.get("role") not in _ROLES:
        shown = repr(value.get("role") if isinstance(value, dict) else value)[:60]
        raise ValueError(f"has a message without a role of {', '.join(_ROLES)}: got {shown}")
    content = value.get("content")
    if isinstance(content, str):
        return Turn(value["role"], (_checked(content, "message"),))
    if not isinstance(content, list):
        kind = type(content).__name__
        raise ValueError(f"has a message whose content is of type {kind}: expected text or parts")
    return Turn(value["role"], tuple(_part(part) for part in content))


def _part(value: Any) -> str | Media:
    """Read a part of a message; {"type": "image"} alone takes the row's next picture."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text" and isinstance(value.get("text"), str):
        return _checked(value["text"], "message")
    if kind in ("image", "video"):
        source = value.get(kind) or value.get("path") or value.get("url")
        return f"<{kind}>" if source is None else _one_media(source, kind)
    raise ValueError(f"has a message part that is not text, image or video: got {repr(value)[:60]}")


def _checked(text: str, what: str) -> str:
    """Return the text; raise ValueError for what breaks tokenizers or chat templates."""
    if "\0" in text:
        raise ValueError(f"has a NUL byte in its {what}")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"has half a character (a lone surrogate) in its {what}")
    if control := _CONTROL.search(text):
        raise ValueError(f"has the control token {control[0]!r} in its {what}")
    return text


def _answer(value: Any) -> str:
    """Return the reference as text; of a GSM8K solution, what follows the last ####."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if not isinstance(value, str):
        raise ValueError(f"has an answer of type {type(value).__name__}: expected text or a number")
    answer = _checked(value, "answer").rpartition("####")[2].strip()
    if not answer:
        raise ValueError("has an empty answer")
    return answer


def _media(row: Row, columns: ColumnsConfig, role: str, kind: Kind) -> list[Media]:
    value = _find(row, columns, role)
    if isinstance(value, str) and value[:1] in "[{":
        value = _structure(value)
    values = [] if value is None else value if isinstance(value, list) else [value]
    if len(values) > MAX_MEDIA:
        raise ValueError(f"has {len(values)} {role}, at most {MAX_MEDIA} are read")
    return [_one_media(value, kind) for value in values]


def _one_media(value: Any, kind: Kind) -> Media:
    if isinstance(value, dict):
        content = value.get("bytes")
        value = content or value.get(kind) or value.get("path") or value.get("url")
    if isinstance(value, bytes):
        return Media(kind, value)
    if not isinstance(value, str) or not value:
        raise ValueError(f"has {'an' if kind == 'image' else 'a'} {kind} without path or bytes")
    uri = _DATA_URI.match(value)
    if uri is None and not (len(value) > 64 and value.startswith(_BASE64_STARTS)):
        return Media(kind, _checked(value, f"{kind} path"))
    try:
        return Media(kind, base64.b64decode(value[uri.end() if uri else 0 :], validate=True))
    except ValueError as error:
        raise ValueError(f"has base64 of its {kind} that is broken ({error})") from None


def _with_media(turns: tuple[Turn, ...], media: list[Media]) -> tuple[Turn, ...]:
    """Put media at their marks in order; without any mark, before the first user turn."""
    waiting = {kind: [m for m in media if m.kind == kind] for kind in ("image", "video")}
    texts = [part for turn in turns for part in turn.content if isinstance(part, str)]
    marks = {kind: sum(text.count(f"<{kind}>") for text in texts) for kind in waiting}
    for kind, own in waiting.items():
        if marks[kind] not in (0, len(own)):
            raise ValueError(f"has {marks[kind]} <{kind}> in its text but {len(own)} {kind}s")
    unmarked = [m for m in media if not marks[m.kind]]
    filled = [Turn(t.role, tuple(_fill_marks(t, waiting))) for t in turns]
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    filled[first] = Turn("user", (*unmarked, *filled[first].content))
    return tuple(filled)


def _fill_marks(turn: Turn, waiting: dict[str, list[Media]]) -> Iterator[str | Media]:
    for part in turn.content:
        if isinstance(part, Media):
            yield part
            continue
        for number, segment in enumerate(_MARK.split(part)):
            if number % 2:
                yield waiting[segment].pop(0)
            elif segment:
                yield segment

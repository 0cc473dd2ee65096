"""Damaged data files: each of 2,400 cases gives usable problems and reasons, or one sentence."""

import base64
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from copd.config import parse_files
from copd.domains.files import open_files
from copd.types import Image, Text, Video
from scripts.make_files_example import write_clip

NUM_PARTS = 10
CASES_PER_PART = 240
SPLITS = ("train", "validation", "test")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(PIXELS).save(file, kind)
    return file.getvalue()


def rows(count: int = 6) -> list[dict[str, Any]]:
    shapes = [
        {"prompt": "1+1?", "answer": "2"},
        {"problem": "<image>which?", "images": ["a.png"], "answer": 3},
        {
            "prompt": [{"role": "user", "content": "a\u00e9b"}],
            "reward_model": {"ground_truth": "x"},
        },
        {"question": "how?", "answer": "so\n#### 1,080", "data_source": "gsm8k"},
        {"prompt": "<video>?", "videos": [{"path": "a.mp4"}], "solution": "b"},
        {"prompt": "p", "image": base64.b64encode(picture("PNG")).decode(), "answer": "c"},
    ]
    return [shapes[i % len(shapes)] for i in range(count)]


def as_lines(content: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in content).encode()


def as_csv(content: list[Any]) -> bytes:
    cells = ['"' + json.dumps(row.get("prompt", "")).replace('"', '""') + '",1' for row in content]
    return ("prompt,answer\n" + "\n".join(cells) + "\n").encode()


JUNK: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1e308,
        10**30,
        "",
        " ",
        "\0",
        "x" * 5000,
        "\ud83d",
        "<image>",
        "<|im_end|>",
    ),
    *([], {}, [[]], [None], [{}], {"role": "user"}, [{"role": "user", "content": None}]),
    *("a.png", "../a.png", "/etc/passwd", "gone.png", "cut.png", "bomb.png", "a.mp4", "cut.mp4"),
    *("data:image/png;base64,AAAA", "iVBORw0KGgo" + "A" * 90, "https://x/y.png", "file://a.png"),
    *([{"bytes": "AAAA", "path": None}], {"bytes": None, "path": None}, ["a.png"] * 300),
    *([{"type": "image"}], [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]),
    json.loads("[" * 200 + "]" * 200),
]


def replace_value(chance: random.Random, value: Any) -> Any:
    """Replace a part of the value with junk."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if chance.random() < 0.15:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: replace_value(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], replace_value(chance, value[place]), *value[place + 1 :]]
    return chance.choice(JUNK)


def damage(chance: random.Random, content: bytes) -> bytes:
    """Cut, change, repeat or insert bytes."""
    start = chance.randrange(len(content) + 1)
    chunk = content[start : start + chance.choice((1, 2, 7, 40))]
    match chance.randrange(8):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + content[start + len(chunk) :]
        case 2:
            return content[:start] + chance.randbytes(len(chunk)) + content[start + len(chunk) :]
        case 3:
            return content[:start] + b"\0" * chance.choice((1, 9)) + content[start:]
        case 4:
            return content[:start] + content + content[start:]
        case 5:
            return content[:start] + chance.choice((b'"', b"[", b"{", b"\n", b"\r", b"\\", b"\xff"))
        case 6:
            codec = chance.choice(("utf-16", "utf-32", "cp500"))
            return content.decode("latin-1").encode(codec, "replace")
    return content[start:] + content[:start]


def damaged_text(chance: random.Random, folder: Path) -> Path:
    name, content = chance.choice(
        (
            ("a.jsonl", as_lines(rows())),
            ("a.json", json.dumps(rows()).encode()),
            ("a.json", as_lines(rows())),
            ("a.csv", as_csv(rows())),
            ("a.tsv", as_csv(rows()).replace(b",", b"\t")),
        )
    )
    for _ in range(chance.choice((1, 1, 2, 5))):
        content = damage(chance, content)
    (folder / name).write_bytes(content)
    return folder / name


def wrong_types(chance: random.Random, folder: Path) -> Path:
    content: list[Any] = rows()
    for place in chance.sample(range(len(content)), chance.choice((1, 2, 6))):
        content[place] = replace_value(chance, content[place])
    name, text = chance.choice(
        (("b.jsonl", as_lines(content)), ("b.json", json.dumps(content).encode()))
    )
    (folder / name).write_bytes(text)
    return folder / name


def damaged_media(chance: random.Random, folder: Path) -> Path:
    suffix = chance.choice(("png", "jpeg", "webp", "gif", "bmp", "tiff", "mp4", "mp4"))
    content = CLIP if suffix == "mp4" else picture(suffix.upper())
    for _ in range(chance.choice((1, 1, 3))):
        content = damage(chance, content)
    (folder / f"hurt.{suffix}").write_bytes(content)
    kind = "video" if suffix == "mp4" else "image"
    row = {"prompt": "?", kind: f"hurt.{suffix}", "answer": "1"}
    (folder / "c.jsonl").write_bytes(as_lines([row, *rows(3)]))
    return folder / "c.jsonl"


def damaged_parquet(chance: random.Random, folder: Path) -> Path:
    (folder / "d.parquet").write_bytes(damage(chance, PARQUET))
    return folder / "d.parquet"


CLIP = b""
PARQUET = b""
WAYS: list[tuple[Callable[[random.Random, Path], Path], int]] = [
    (damaged_text, 110),
    (wrong_types, 80),
    (damaged_media, 46),
    (damaged_parquet, 4),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the media that rows name, whole and broken."""
    import datasets

    global CLIP, PARQUET
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    place = tmp_path / "data"
    place.mkdir()
    (place / "a.png").write_bytes(picture("PNG"))
    (place / "cut.png").write_bytes(picture("PNG")[:-30])
    Pillow.new("1", (9000, 9000)).save(place / "bomb.png")
    write_clip(place / "a.mp4", Video(np.stack([PIXELS] * 4), 2.0))
    CLIP = (place / "a.mp4").read_bytes()
    (place / "cut.mp4").write_bytes(CLIP[:-100])
    if not PARQUET:
        datasets.Dataset.from_list(
            [{"prompt": f"{i}?", "answer": str(i)} for i in range(9)]
        ).to_parquet(tmp_path / "whole.parquet")
        PARQUET = (tmp_path / "whole.parquet").read_bytes()
    return place


def check(path: Path) -> int:
    """Open a file as `copd data` does; return the number of usable problems."""
    try:
        domain = open_files("fuzz", parse_files(str(path), ["--max_pixels", "1000000"]))
    except ValueError as error:
        assert_sentence(str(error))
        return 0
    for bad in domain.index.bad:
        assert bad.number >= 1
        assert_sentence(bad.reason)
    count = sum(map(domain.num_problems, SPLITS))
    assert count + len(domain.index.bad) + domain.index.num_leaked == domain.index.num_rows
    for split in SPLITS:
        for index in range(domain.num_problems(split)):
            assert_whole(domain.problem(split, index))
    return count


def assert_sentence(text: str) -> None:
    assert 3 < len(text) < 400, text
    assert "\n" not in text and "Traceback" not in text, text


def assert_whole(problem) -> None:
    assert problem.answer.strip() == problem.answer != ""
    parts = [part for message in problem.messages for part in message.content]
    assert parts
    for part in parts:
        match part:
            case Text(text):
                assert text.encode() is not None and "\0" not in text
            case Image(pixels):
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size
            case Video(frames, fps):
                assert (
                    frames.dtype == np.uint8 and frames.ndim == 4 and len(frames) >= 2 and fps > 0
                )


def test_what_is_not_damaged_is_used(folder: Path):
    for name, content in (("a.jsonl", as_lines(rows())), ("a.json", json.dumps(rows()).encode())):
        (folder / name).write_bytes(content)
        assert check(folder / name) == 6
    (folder / "d.parquet").write_bytes(PARQUET)
    assert check(folder / "d.parquet") == 9


def test_one_damaged_row_costs_only_itself(folder: Path):
    whole = [{"prompt": f"{i}?", "answer": "1"} for i in range(5)]
    for number, junk in enumerate(JUNK):
        (folder / f"{number}.jsonl").write_bytes(as_lines([*whole[:2], junk, *whole[2:]]))
        assert check(folder / f"{number}.jsonl") == 5
    for number, line in enumerate((b"\0" * 99, b"[" * 10_000, b"9" * 9999, b'{"a"', b"\xff\xfe")):
        path = folder / f"line{number}.jsonl"
        path.write_bytes(as_lines(whole[:2]) + line + b"\n" + as_lines(whole[2:]))
        assert check(path) == 5


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_damaged_file_ends_in_problems_and_reasons_or_a_sentence(folder: Path, part: int):
    done = used = 0
    for way, count in WAYS:
        for case in range(count):
            place = folder / f"{way.__name__}{case}"
            place.mkdir()
            for file in ("a.png", "cut.png", "bomb.png", "a.mp4", "cut.mp4"):
                (place / file).hardlink_to(folder / file)
            path = way(random.Random(f"{part} {way.__name__} {case}"), place)
            used += check(path) > 0
            done += 1
    assert done == CASES_PER_PART
    assert used > 0.3 * done, "damage so heavy that nothing is left tests little"


def test_a_line_longer_than_what_is_read_is_one_bad_row(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("copd.domains.files.tables.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("copd.domains.files.text.MAX_ROW_BYTES", 1000)
    monkeypatch.setattr("copd.domains.files.text.MAX_LIST_BYTES", 2000)
    whole = [{"prompt": f"{i}?", "answer": "1"} for i in range(5)]
    huge = {"prompt": "x" * 5000, "answer": "1"}
    (folder / "a.jsonl").write_bytes(as_lines([*whole, huge, *whole]))
    assert check(folder / "a.jsonl") == 10
    (folder / "a.csv").write_bytes(as_csv([*whole, huge, *whole]))
    assert check(folder / "a.csv") == 5
    (folder / "a.json").write_bytes(json.dumps([huge]).encode())
    with pytest.raises(ValueError, match="Write one object per line"):
        open_files("a", parse_files(str(folder / "a.json")))

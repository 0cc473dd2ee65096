"""Filtered files with pass rates: what they hold, and when none is written."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from copd.config import parse_files
from copd.domains.files import FilesDomain, open_files
from copd.domains.files.filtered import check_target, write_filtered
from copd.types import Image

HELD_OUT = ("--validation_share", "0.2", "--test_share", "0.2")


def opened(path: Path | list[str], *overrides: str) -> FilesDomain:
    words = [] if isinstance(path, Path) else ["--path", json.dumps(path)]
    first = str(path) if isinstance(path, Path) else path[0]
    return open_files("mine", parse_files(first, [*HELD_OUT, *words, *overrides]))


def answers(domain: FilesDomain, split) -> list[str]:
    return [domain.problem(split, i).answer for i in range(domain.num_problems(split))]


def rates(domain: FilesDomain) -> dict[str, object]:
    """Return the new column by answer, over all rows of all tables."""
    rows = chain.from_iterable(source.table.rows() for source in domain.sources)
    return {str(row["answer"]): row["pass_rate"] for row in rows if not isinstance(row, ValueError)}


@pytest.fixture
def rows() -> list[dict[str, str]]:
    return [
        {"problem": f"{i} \u00e4, or \n{i}?", "answer": f"{i}", "level": "x"} for i in range(30)
    ]


def write(folder: Path, name: str, rows: list[dict[str, str]]) -> Path:
    import datasets

    path, lines = folder / name, [json.dumps(row) for row in rows]
    match path.suffix:
        case ".jsonl":
            path.write_text("\n\n".join(lines))
        case ".json":
            path.write_text(f" [{', '.join(lines)}]")
        case ".csv" | ".tsv":
            datasets.Dataset.from_list(rows).to_csv(path, sep=",\t"[path.suffix == ".tsv"])
        case ".parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        case _:
            datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "saved"])
def test_filtered_rows_have_the_columns_order_and_splits_of_their_source(
    tmp_path: Path, rows, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    domain = opened(write(tmp_path, name, rows))
    out = tmp_path / ("filtered" + (Path(name).suffix or ".parquet"))
    check_target(domain, out)
    train = answers(domain, "train")
    chosen = dict.fromkeys(range(0, len(train), 2), 0.25)
    num_held_out = domain.num_problems("validation") + domain.num_problems("test")
    assert num_held_out > 4 and len(train) > 10
    assert write_filtered(domain, chosen, out) == num_held_out

    again = opened(out)
    assert again.index.bad == ()
    assert sorted(answers(again, "train")) == sorted(train[::2])
    for split in ("validation", "test"):
        assert answers(again, split) == answers(domain, split)
    found, absent = rates(again), "" if out.suffix in (".csv", ".tsv") else None
    assert list(found) == sorted(found, key=int), "the order of the source"
    for answer, rate in found.items():
        expected = 0.25 if answer in train else absent
        assert rate == (str(expected) if out.suffix in (".csv", ".tsv") else expected)
    [source] = again.sources
    row = source.table.row(0)
    assert {k: row[k] for k in rows[0]} == rows[int(str(row["answer"]))]
    assert list(row) == [*rows[0], "pass_rate"]


def test_parquet_keeps_pictures_and_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    content = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    made = datasets.Dataset.from_list(
        [{"prompt": f"{i}?", "image": content, "answer": str(i)} for i in range(20)]
    ).cast_column("image", datasets.Image())
    for name, part in (("a", range(12)), ("b", range(12, 20))):
        made.select(part).to_parquet(tmp_path / f"{name}.parquet")
    domain = opened([str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")])
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere" / "filtered.parquet"
    check_target(domain, out)  # bytes travel with their row
    write_filtered(domain, {0: 0.5, 3: 1.0}, out)
    [shown] = [p for p in opened(out).problem("train", 0).messages[0].content if type(p) is Image]
    assert np.array_equal(shown.pixels, pixels)
    assert datasets.Dataset.from_parquet(str(out)).features["image"] == datasets.Image()


def test_several_files_become_one(tmp_path: Path, rows):
    paths = [write(tmp_path, "a.csv", rows[:15]), write(tmp_path, "b.csv", rows[15:])]
    domain = opened([str(path) for path in paths])
    out = tmp_path / "filtered.csv"
    check_target(domain, out)
    write_filtered(domain, dict.fromkeys(range(domain.num_problems("train")), 0.5), out)
    assert rates(opened(out)).keys() == {row["answer"] for row in rows}
    assert out.read_text().count("problem,answer,level,pass_rate") == 1


def test_files_of_held_out_splits_stay_where_they_are(tmp_path: Path, rows):
    write(tmp_path, "test.jsonl", rows[:5])
    domain = opened(write(tmp_path, "a.jsonl", rows), "--test_path", f"{tmp_path}/test.jsonl")
    num_validation = domain.num_problems("validation")
    assert write_filtered(domain, {0: 0.5}, tmp_path / "filtered.jsonl") == num_validation
    assert rates(opened(tmp_path / "filtered.jsonl")).keys().isdisjoint(str(i) for i in range(5))


@pytest.mark.parametrize(
    ("out", "remedy"),
    [
        ("a.jsonl", "Choose another --out"),
        ("filtered.json", r"Name a file that ends in \.jsonl"),
        ("gone/filtered.jsonl", "Make the folder"),
    ],
)
def test_an_unusable_target_is_refused(tmp_path: Path, rows, out: str, remedy: str):
    domain = opened(write(tmp_path, "a.jsonl", rows))
    with pytest.raises(ValueError, match=remedy):
        check_target(domain, tmp_path / out)


def test_a_target_that_would_change_the_data_is_refused(tmp_path: Path, rows):
    path = write(tmp_path, "a.jsonl", rows)
    with pytest.raises(ValueError, match="Write it elsewhere"):
        check_target(opened(tmp_path), tmp_path / "filtered.jsonl")
    (tmp_path / "below").mkdir()
    Pillow.new("RGB", (16, 16)).save(tmp_path / "a.png")
    seen = write(tmp_path, "b.jsonl", [{**rows[0], "image": "a.png"}])
    with pytest.raises(ValueError, match=r"b\.jsonl:1 names media .* Write it beside its source"):
        check_target(opened(seen), tmp_path / "below" / "filtered.jsonl")
    check_target(opened(seen), tmp_path / "filtered.jsonl")
    root = ("--media_root", str(tmp_path))
    check_target(opened(seen, *root), tmp_path / "below" / "filtered.jsonl")
    rated = write(tmp_path, "c.jsonl", [rows[0], {**rows[1], "pass_rate": "0.5"}])
    with pytest.raises(ValueError, match=r"c\.jsonl:3 has a column pass_rate already"):
        check_target(opened(rated), tmp_path / "filtered.jsonl")
    mixed = opened([str(path), str(write(tmp_path, "d.csv", rows[:1]))])
    with pytest.raises(ValueError, match="Filter each alone"):
        check_target(mixed, tmp_path / "filtered.csv")
    other = write(tmp_path, "e.csv", [{"problem": "?", "answer": "1"}])
    both = opened([str(tmp_path / "d.csv"), str(other)])
    with pytest.raises(ValueError, match="must have the same columns"):
        check_target(both, tmp_path / "filtered.csv")

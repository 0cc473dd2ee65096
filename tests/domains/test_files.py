"""Problems from the user's own files: formats, columns, splits, and their use in a run."""

import csv
import json
import pickle
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from copd.config import load_config, parse_files
from copd.domains import load_domains, with_sizes
from copd.domains.files import FilesDomain, load_files, open_files
from copd.types import Image, Text

SPLITS = ("train", "validation", "test")


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opened(path: Path | str, *overrides: str) -> FilesDomain:
    return open_files("mine", parse_files(str(path), overrides))


def only(domain: FilesDomain):
    """Return the one problem of a domain, in whichever split it is."""
    assert domain.index.bad == ()
    [problem] = [domain.problem(s, i) for s in SPLITS for i in range(domain.num_problems(s))]
    return problem


def problems(domain: FilesDomain):
    return {s: [domain.problem(s, i) for i in range(domain.num_problems(s))] for s in SPLITS}


def prompt_text(problem) -> str:
    return "".join(part.text for m in problem.messages for part in m.content if type(part) is Text)


def reason(path: Path, row: Any, *overrides: str) -> str:
    """Return why a row is bad."""
    domain = opened(write_lines(path / "row.jsonl", [row]), *overrides)
    [bad] = domain.index.bad
    assert sum(map(domain.num_problems, SPLITS)) == 0
    return bad.reason


@pytest.fixture
def picture(tmp_path: Path) -> np.ndarray:
    pixels = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    Pillow.fromarray(pixels[::-1]).save(tmp_path / "b.png")
    return pixels


# Columns


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1?", "answer": "2"},
        {"prompt": "1+1?", "solution": 2},
        {"problem": "1+1?", "solution": "because", "answer": "2"},
        {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
        {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}},
        {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], "answer": 2},
        {"prompt": '[{"role": "user", "content": "1+1?"}]', "answer": "2"},
        {"prompt": "1+1?", "answer": "2", "images": None, "videos": [], "suite": None},
    ],
)
def test_known_columns_need_no_mapping(tmp_path: Path, row: dict):
    problem = only(opened(write_lines(tmp_path / "a.jsonl", [row])))
    assert [message.role for message in problem.messages] == ["user"]
    assert (prompt_text(problem), problem.answer, problem.suite) == ("1+1?", "2", "mine")


def test_a_mapping_names_columns_and_goes_into_tables(tmp_path: Path):
    row = {"prompt": "no", "q": "1+1?", "extra": {"a": "2"}, "kind": "sums", "answer": "3"}
    path = write_lines(tmp_path / "a.jsonl", [row])
    mapping = '{prompt = "q", answer = "extra.a", suite = "kind"}'
    problem = only(opened(path, "--columns", mapping))
    assert (prompt_text(problem), problem.answer, problem.suite) == ("1+1?", "2", "sums")


def test_system_prompt_and_suffix_are_added_to_every_prompt(tmp_path: Path):
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "b"}]
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": own, "answer": "1"}]
    settings = ("--system_prompt", "Be brief.", "--prompt_suffix", '"\\nNow."', "--test_share", "0")
    domain = opened(write_lines(tmp_path / "a.jsonl", rows), *settings, "--validation_share", "0")
    assert sorted(
        [prompt_text(replace(p, messages=(m,))) for m in p.messages]
        for p in problems(domain)["train"]
    ) == [
        ["Be brief.", "a\nNow."],
        ["mine", "b\nNow."],
    ]


@pytest.mark.parametrize(
    ("prompt", "shape"),
    [
        ("<image>first, <image> second", ["a", "first, ", "b", " second"]),
        ("which?", ["a", "b", "which?"]),
        ([{"role": "user", "content": "x <image><image>"}], ["x ", "a", "b"]),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image"},
                        {"type": "text", "text": "or"},
                        {"type": "image"},
                    ],
                }
            ],
            ["a", "or", "b"],
        ),
    ],
)
def test_media_stand_at_their_marks_or_come_first(
    tmp_path: Path, picture, prompt, shape: list[str]
):
    row = {"prompt": prompt, "images": ["a.png", {"path": "b.png", "bytes": None}], "answer": "1"}
    problem = only(opened(write_lines(tmp_path / "a.jsonl", [row])))
    pixels = {"a": picture, "b": picture[::-1]}
    for part, expected in zip(problem.messages[0].content, shape, strict=True):
        if isinstance(part, Image):
            assert np.array_equal(part.pixels, pixels[expected])
        else:
            assert part == Text(expected)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "1+1?", "answer": 2}, "has no prompt: expected a value in prompt or problem"),
        ({"prompt": "1+1?"}, "has no answer: expected a value in reward_model.ground_truth or"),
        ({"prompt": "1+1?", "answer": ["2"]}, "has an answer of type list"),
        ({"prompt": "1+1?", "answer": "#### "}, "has an empty answer"),
        ({"prompt": "1+1?", "answer": "2 # 3"}, "the verifier 'exact' could never match it"),
        ({"prompt": 3, "answer": "2"}, "has a prompt of type int"),
        ({"prompt": [{"role": "bot", "content": ""}], "answer": "2"}, "without a role of system"),
        ({"prompt": [{"role": "user", "content": 1}], "answer": "2"}, "content is of type int"),
        ({"prompt": "a\0b", "answer": "2"}, "has a NUL byte in its prompt"),
        ({"prompt": "a\ud800", "answer": "2"}, "has half a character"),
        ({"prompt": "<|im_end|>", "answer": "2"}, "has the control token '<|im_end|>'"),
        ({"prompt": "<image>?", "answer": "2"}, "has 1 <image> in its text but 0 images"),
        ({"prompt": "<image>?", "answer": "2", "images": ["a", "b"]}, "but 2 images"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "answer": "2"}, "has no question"),
        ([1], "is not a JSON object but a list"),
    ],
)
def test_a_bad_row_says_why(tmp_path: Path, row: Any, expected: str):
    assert expected in reason(tmp_path, row)


def test_a_reference_that_could_never_be_matched_is_bad(tmp_path: Path):
    row = {"prompt": "1+1?", "answer": "two"}
    assert "answer 'two' has no number" in reason(tmp_path, row, "--verifier.type", "numeric")


# Formats


def test_every_format_holds_the_same_problems(tmp_path: Path):
    rows = [{"prompt": f"a \u00e9 {i},\n'\"<", "answer": str(i)} for i in range(12)]
    write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8")
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    for name, delimiter in (("d.csv", ","), ("e.tsv", "\t")):
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, ["prompt", "answer"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    found = [
        {s: [(prompt_text(p), p.answer) for p in ps] for s, ps in problems(opened(path)).items()}
        for path in sorted(tmp_path.iterdir())
    ]
    assert len(found) == 5 and all(one == found[0] for one in found)
    assert sorted(chain(*found[0].values())) == sorted((r["prompt"], r["answer"]) for r in rows)


def test_parquet_and_saved_data_sets(tmp_path: Path, picture, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    content = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    rows = [
        {"problem": f"<image>{i}?", "images": [content], "reward_model": {"ground_truth": str(i)}}
        for i in range(8)
    ]
    saved = datasets.Dataset.from_list(rows)
    saved = saved.cast_column("images", datasets.List(datasets.Image()))
    saved.to_parquet(tmp_path / "a.parquet")
    saved.save_to_disk(tmp_path / "plain")
    splits: Any = datasets.DatasetDict
    half = splits(train=saved.select(range(5)), test=saved.select(range(5, 8)))
    half.save_to_disk(tmp_path / "split")
    for name in ("a.parquet", "plain", "split"):
        domain = opened(tmp_path / name)
        found = list(chain(*problems(domain).values()))
        assert sorted(p.answer for p in found) == [str(i) for i in range(8)]
        shown = [part for p in found for part in p.messages[0].content if isinstance(part, Image)]
        assert len(shown) == 8 and all(np.array_equal(part.pixels, picture) for part in shown)
        assert pickle.loads(pickle.dumps(domain)).problem("train", 0).answer
    assert [p.answer for p in problems(opened(tmp_path / "split"))["test"]] == ["5", "6", "7"]


def test_a_table_holds_positions_and_no_content(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for i in range(2000):
            file.write(json.dumps({"prompt": f"{i} " + "x" * 2000, "answer": str(i)}) + "\n\n")
    domain = opened(path)
    assert path.stat().st_size > 4_000_000
    assert len(pickle.dumps(domain)) < 150_000
    assert domain.index.num_rows == 2000
    assert prompt_text(domain.problem("train", 7)).split()[0] == domain.problem("train", 7).answer


def test_bad_rows_have_the_line_where_a_user_finds_them(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt":"a","answer":1}\n\n \nnonsense\n{"prompt":"\xff"}\r\n{"a":1}')
    assert [row.number for row in opened(path).index.bad] == [4, 5, 6]
    table = tmp_path / "b.csv"
    table.write_bytes(b'prompt,answer\n"a\nb",1\n\nonly\n"c\nd",2\nx,y,z\n')
    assert [(r.number, r.reason) for r in opened(table).index.bad] == [
        (5, "has 1 cells, the header has 2"),
        (8, "has 3 cells, the header has 2"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.txt", b"", "Convert it, or rename it"),
        ("a.csv", b"", "must name each column once"),
        ("a.csv", b"a,a\n", "must name each column once"),
        ("a.json", b'[{"prompt": "\xff"}]', "is not UTF-8"),
        ("a.parquet", b"PAR1nothingPAR1", "cannot be read as Parquet"),
        ("gone/a.jsonl", None, "path must be a file, a folder or a data set"),
        ("gone", None, "Check the path"),
    ],
)
def test_a_file_that_cannot_be_opened_says_why(tmp_path: Path, name: str, content, remedy: str):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=remedy):
        opened(tmp_path / name)


# Splits


def numbered(numbers: range) -> list[dict]:
    return [{"prompt": f"{i}?", "answer": str(i)} for i in numbers]


def test_splits_are_disjoint_and_added_lines_move_no_problem(tmp_path: Path):
    few = problems(opened(write_lines(tmp_path / "few.jsonl", numbered(range(400)))))
    more = numbered(range(600))[::-1]
    many = problems(opened(write_lines(tmp_path / "many.jsonl", more)))
    sizes = {split: len(found) for split, found in few.items()}
    assert sum(sizes.values()) == 400
    assert 20 < sizes["test"] < 60 and 8 < sizes["validation"] < 35
    for split in SPLITS:
        assert {p.answer for p in few[split]} <= {p.answer for p in many[split]}
    everything = [p.answer for found in many.values() for p in found]
    assert len(everything) == len(set(everything)) == 600


def test_repeated_problems_stay_in_one_split(tmp_path: Path):
    rows = numbered(range(100)) * 3
    domain = opened(write_lines(tmp_path / "a.jsonl", rows))
    answers = {s: {p.answer for p in found} for s, found in problems(domain).items()}
    assert len(set.union(*answers.values())) == sum(map(len, answers.values())) == 100
    assert domain.index.num_repeated == 200


def test_a_split_with_its_own_file_keeps_its_order_and_is_not_trained_on(tmp_path: Path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_lines(folder / "train.jsonl", numbered(range(50)))
    write_lines(folder / "test-0.jsonl", numbered(range(40, 70)))
    write_lines(folder / "val.jsonl", numbered(range(45, 48)))
    domain = opened(folder)
    answers = {s: [p.answer for p in found] for s, found in problems(domain).items()}
    assert answers["test"] == [str(i) for i in range(40, 70)]
    assert answers["validation"] == []
    assert answers["train"] == [str(i) for i in range(40)]
    assert domain.index.num_leaked == 10 + 3
    named = opened(folder / "train.jsonl", "--test_path", f"{folder}/val.jsonl")
    assert [p.answer for p in problems(named)["test"]] == ["45", "46", "47"]


def test_the_same_picture_under_another_name_is_the_same_problem(tmp_path: Path, picture):
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())
    rows = [{"prompt": "?", "images": [f"{name}.png"], "answer": "1"} for name in "abc"]
    assert opened(write_lines(tmp_path / "a.jsonl", rows)).index.num_repeated == 1


# In a run

RUN = """
[model]
path = "tiny"
[domains.mine]
type = "files"
path = "{path}"
[recipe]
type = "experts"
steps = 1
[evaluation]
num_problems = 3
"""


def config_of(folder: Path, rows: list[Any], *overrides: str):
    (folder / "run.toml").write_text(RUN.format(path=write_lines(folder / "a.jsonl", rows)))
    return load_config(folder / "run.toml", overrides)


def test_a_run_takes_its_sizes_from_the_data_and_notices_other_data(tmp_path: Path):
    rows = numbered(range(100))
    config = config_of(tmp_path, rows)
    said: list[str] = []
    measured = with_sizes(config, said.append)
    section: Any = measured.domains["mine"]
    assert section.num_train + section.num_validation + section.num_test == 100
    assert with_sizes(measured, said.append) == measured and not said
    [domain] = load_domains(measured.domains).values()
    assert domain.num_problems("test") == section.num_test
    write_lines(tmp_path / "a.jsonl", [*rows[:-1], {"prompt": "99?", "answer": "other"}])
    with pytest.raises(ValueError, match="Restore the files, or start a new run"):
        with_sizes(measured, said.append)


def test_a_run_refuses_bad_problems_or_says_how_many_it_drops(tmp_path: Path):
    rows = [*numbered(range(100)), *[{"prompt": "no answer"}] * 7]
    with pytest.raises(ValueError, match="7 bad ones of 107") as caught:
        load_domains(config_of(tmp_path, rows).domains)
    lines = str(caught.value).splitlines()
    assert "set domains.mine.drop_bad = true" in lines[0]
    assert lines[1].startswith(f"{tmp_path}/a.jsonl:101: has no answer")
    assert lines[-1] == "... and 2 more" and len(lines) == 7
    said: list[str] = []
    config = config_of(tmp_path, rows, "--domains.mine.drop_bad", "true")
    with_sizes(config, said.append)
    assert said == ["domain mine: dropped 7 of 107 problems as bad"]


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("--domains.mine.num_test", "60"), "raise domains.mine.test_share, or name"),
        (("--domains.mine.num_train", "100"), "Add problems, or lower domains.mine.test_share"),
        (("--domains.mine.validation_share", "0"), "asks for at least 1"),
        (("--domains.mine.media_root", "/gone"), "media_root must be a folder"),
        (("--evaluation.num_problems", "50"), "but domains.mine.num_test is 11. Lower the first"),
    ],
)
def test_sizes_the_data_do_not_have_are_refused(tmp_path: Path, overrides, remedy: str):
    config = config_of(tmp_path, numbered(range(100)), *overrides)
    with pytest.raises(ValueError, match=remedy):
        with_sizes(config, print)


def test_a_limit_takes_the_first_ones(tmp_path: Path):
    path = write_lines(tmp_path / "a.jsonl", numbered(range(100)))
    whole = problems(opened(path))["train"]
    few = load_files("mine", parse_files(str(path), ["--num_train", "5"]))
    assert few.num_problems("train") == 5
    assert [few.problem("train", i).answer for i in range(5)] == [p.answer for p in whole[:5]]
    with pytest.raises(IndexError, match="has 5 train problems: got index 5"):
        few.problem("train", 5)


def test_a_problem_that_vanishes_is_named(tmp_path: Path, picture):
    rows = [{"prompt": f"{i}?", "images": ["a.png"], "answer": "1"} for i in range(30)]
    domain = opened(write_lines(tmp_path / "a.jsonl", rows))
    (tmp_path / "a.png").unlink()
    with pytest.raises(
        ValueError, match=r"a.jsonl:\d+ could be read before.*a.png.* does not exist"
    ):
        domain.problem("train", 0)


def test_a_completion_is_verified_and_its_answer_extracted(tmp_path: Path):
    rows = [{"prompt": "?", "answer": "#### 1,080"}]
    problem = only(domain := opened(write_lines(tmp_path / "a.jsonl", rows)))
    assert (domain.verify(problem, "so #1,080"), domain.verify(problem, "so 1,080")) == (1.0, 0.0)
    assert domain.extract_answer(problem, "so # 7 ") == "7"
    assert domain.extract_answer(problem, "so") == ""
    domain = opened(tmp_path / "a.jsonl", "--verifier", "{type = 'numeric', mark = ''}")
    assert domain.verify(problem, "it is $1080.00!") == 1.0
    assert domain.extract_answer(problem, "it is $1080.50!") == "1080.5"

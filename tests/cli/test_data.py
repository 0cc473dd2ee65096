"""`copd data`: output and exit codes."""

import json
from pathlib import Path

import pytest
from PIL import Image as Pillow

from copd.cli import main

RUN = """
[model]
path = "tiny"
[domains.digits]
type = "digits"
modality = "text"
[domains.mine]
type = "files"
path = "{folder}/good.jsonl"
columns = {{prompt = "q"}}
[recipe]
type = "experts"
steps = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Pillow.new("RGB", (32, 16), "white").save(tmp_path / "a.png")
    good = [{"q": f"{i}+1?", "image": "a.png", "answer": i + 1} for i in range(40)]
    bad = [{"q": f"{i}?", "image": "gone.png", "answer": 1} for i in range(30)]
    for name, rows in (("good", good), ("bad", good + bad)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "run.toml").write_text(RUN.format(folder=tmp_path), encoding="utf-8")
    return tmp_path


def test_good_data_are_shown_as_the_model_sees_them(folder: Path, capsys):
    words = ["data", f"{folder}/good.jsonl", "--columns.prompt", "q", "--model", "tiny"]
    assert main([*words, "--show", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"{folder}/good.jsonl: 40 problems\nsplits: " in printed
    assert "modality: image; suites: good" in printed
    assert "[picture, 32 x 16 pixels]" in printed
    assert "tokens, 2 of them visual:" in printed
    assert "<|vision_start|><|image_pad|> x 2 <|vision_end|>" in printed


def test_bad_data_are_listed_with_line_and_reason(folder: Path, capsys):
    assert main(["data", f"{folder}/bad.jsonl", "--columns.prompt", "q"]) == 2
    printed = capsys.readouterr()
    assert f"{folder}/bad.jsonl:41: file 'gone.png' does not exist" in printed.out
    assert printed.out.count("gone.png") == 20
    assert "... and 10 more; --json lists all" in printed.out
    assert printed.err.startswith("copd: error: 30 of 70 problems are bad: training refuses")


def test_json_has_every_bad_line(folder: Path, capsys):
    assert main(["data", f"{folder}/bad.jsonl", "--columns.prompt", "q", "--json"]) == 2
    report = json.loads(capsys.readouterr().out)
    assert [row["line"] for row in report["bad"]] == list(range(41, 71))
    assert sum(report["splits"].values()) == 40 and report["problems"] == 70
    assert len(report["shown"]) == 3 and "prompt" not in report["shown"][0]


def test_settings_come_from_a_configuration(folder: Path, capsys):
    assert main(["data", "--config", f"{folder}/run.toml"]) == 0
    assert "good.jsonl: 40 problems" in capsys.readouterr().out
    words = ["data", f"{folder}/bad.jsonl", "--config", f"{folder}/run.toml", "--domain", "mine"]
    assert main(words) == 2
    assert "suites: mine" in capsys.readouterr().out
    assert main([*words, "--domains.mine.columns.prompt", "p"]) == 2
    assert "has no prompt: expected a value in p" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ([], "Name the file to check"),
        (["nowhere.jsonl"], "Check the path"),
        (["{folder}/good.jsonl", "--columns.promt", "q"], "Did you mean columns.prompt?"),
        (["{folder}/good.jsonl", "--max_pixels", "0"], "Pass another value to --max_pixels."),
        (["{folder}/good.jsonl", "--domain", "mine"], "Name the file to check"),
        (["--config", "{folder}/run.toml", "--domain", "digits"], "it has mine. Add --domain"),
        (["{folder}/good.jsonl", "--columns.prompt", "q", "--model", "gone/"], "model folder not"),
    ],
)
def test_a_mistake_ends_in_a_sentence(folder: Path, capsys, words: list[str], remedy: str):
    assert main(["data", *(word.format(folder=folder) for word in words)]) == 2
    assert remedy in capsys.readouterr().err

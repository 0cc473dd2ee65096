"""The output of a diagnosis: JSON, tables for a terminal, and a page."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from copd.cli import main
from copd.lab.diagnose.findings import LABELS, Diagnosis
from copd.lab.diagnose.page import page
from copd.lab.diagnose.tables import to_console, to_json
from tests.lab.report.conftest import Browser

LAPTOP = str(Path(__file__).parents[3] / "configs" / "laptop.toml")
SMALL = ("--num-problems", "2", "--num-samples", "1", "--rollout.max_completion_tokens", "4")


class Reading(HTMLParser):
    """Start tags with their attributes, and all text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.words: list[str] = []
        self.data = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1]
        if tag == "script" and attributes.get("type") == "application/json":
            self.data += data
        elif tag not in ("script", "style"):
            self.words.append(data)


def test_json_has_everything(diagnosed: Diagnosis):
    found = json.loads(json.dumps(to_json(diagnosed), allow_nan=False))
    assert found["teacher"] == "tiny"
    assert (found["overlap_k"], found["split"], found["seed"]) == (10, "validation", 3)
    assert list(found["domains"]) == ["text", "image"]
    for own in found["domains"].values():
        assert own["kl"] == "exact"
        assert own["verdict"] and len(own["reasons"]) >= 2
        groups = [own, *own["suites"].values()]
        assert len(groups) >= 3
        assert all(set(g["accuracy"]) == {"student", "teacher", "difference"} for g in groups)
        for group in [*groups, *own["positions"]]:
            assert set(group["measures"]) == set(LABELS)
            for estimate in group["measures"].values():
                assert set(estimate) == {"mean", "low", "high"}
                assert estimate["mean"] is not None
        single = [group for group in groups if group["num_problems"] == 1]
        assert all(group["measures"]["overlap"]["low"] is None for group in single)
        assert own["measures"]["overlap"]["low"] < own["measures"]["overlap"]["high"]
        edges = [(place["first"], place["last"]) for place in own["positions"]]
        assert edges[0][0] == 1
        assert all(b[0] == a[1] + 1 for a, b in pairwise(edges))


def test_the_terminal_shows_verdicts_and_numbers(diagnosed: Diagnosis):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(to_console(diagnosed))
    text = capture.get()
    for own in diagnosed.domains.values():
        assert own.verdict.reasons[0][:60] in text
        overlap = own.whole.summary.means["overlap"]
        assert f"{overlap.mean:.3f} \u00b1{overlap.high - overlap.mean:.3f}" in text
    assert "This is a rule of thumb" in text and "teacher on student's top 10" in text


def test_the_page_is_complete_and_loads_nothing(diagnosed: Diagnosis):
    evil = replace(diagnosed, student="<b>&</script>", teacher="<!--data-->")
    read = Reading(page(evil))
    text = " ".join(read.words)
    assert "<b>&</script> from <!--data-->" in text
    assert not [tag for tag, _ in read.tags if tag == "b"]
    for own in diagnosed.domains.values():
        assert all(reason in text for reason in own.verdict.reasons)
    links = [a.get("src") or a.get("href") for _, a in read.tags]
    assert [link for link in links if link is not None] == ["data:,"]
    assert len([tag for tag, _ in read.tags if tag == "table"]) == 2 * len(diagnosed.domains)
    assert json.loads(read.data)["domains"] == to_json(diagnosed)["domains"]


@pytest.mark.chromium
def test_a_browser_draws_the_positions(browser: Browser, diagnosed: Diagnosis, tmp_path: Path):
    file = tmp_path / "diagnosis.html"
    file.write_text(page(diagnosed), encoding="utf-8")
    browser.emulate()
    browser.open(file)
    assert browser.errors == []
    assert browser.requests == [file.resolve().as_uri()]
    assert browser.count("#positions figure") == 5 * len(diagnosed.domains)
    bins = len(diagnosed.domains["text"].bins)
    assert browser.count("#positions figure:first-child svg .mark") >= bins
    browser.hover("#positions figure svg")
    assert browser.text("#positions figure .read").startswith("token ")
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    for width in (1280, 360):
        browser.emulate(width=width)
        assert not browser.evaluate(wide)


def test_the_command_prints_json_and_writes_both_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["diagnose", "tiny", "tiny", "--config", LAPTOP, "--domain", "text", *SMALL]
    out = tmp_path / "some" / "where"
    assert main([*words, "--seed", "5", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "diagnosis.json").read_text())
    assert printed["seed"] == 5 and list(printed["domains"]) == ["text"]
    assert printed["domains"]["text"]["verdict"] == "nothing to teach"
    assert "nothing to teach" in (out / "diagnosis.html").read_text()


def test_mistakes_end_in_a_sentence(
    tmp_path: Path,
    reading_folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
):
    words = ["diagnose", "tiny", "tiny", "--config", LAPTOP]
    assert main([*words, "--domain", "text", "sound"]) == 2
    assert "got 'sound', it has text, image, video" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main([*words, "--out", str(tmp_path / "file")]) == 2
    assert "--out must be a folder" in capsys.readouterr().err
    words[2] = str(reading_folders["llama"])
    assert main([*words, "--domain", "text"]) == 2
    assert "must have one tokenizer" in capsys.readouterr().err

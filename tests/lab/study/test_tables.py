"""What a study's numbers and tables say, by structure: marks, gaps, escapes, notes."""

import dataclasses
import io
import math
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from copd.lab.study import Summary, summarize, to_console, to_html, to_markdown
from copd.lab.study.layout import DASH, notes, percent, sheets
from copd.lab.study.statistics import Comparison
from copd.monitor.results import Estimate

SIZE = 400


def column(text, image, spread=0.0, num_seeds=3):
    """So many of every 40 problems correct; seeds differ by a share of all of them."""
    shifts = spread * np.linspace(-1, 1, num_seeds)[:, None]
    return {
        "text": (np.arange(SIZE) < 10 * text).astype(float) + shifts,
        "image": (np.arange(SIZE) < 10 * image).astype(float) + shifts,
    }


@pytest.fixture(scope="module")
def study(make_study):
    return make_study(
        {
            "base": column(8, 8, num_seeds=1),
            "expert text": column(28, 12),
            "expert image": column(10, 32),
            "mixed": column(20, 24, spread=0.01),
            "copd": column(24, 26, spread=0.01),
        },
        suites={"text": ["add", "sort"] * (SIZE // 2), "image": ["read", "count"] * (SIZE // 2)},
        experts={"text": "expert text", "image": "expert image"},
    )


@pytest.fixture(scope="module")
def summary(study) -> Summary:
    return summarize(study)


def test_differences_are_paired_and_go_both_ways(summary):
    ahead, behind = (
        summary.comparisons["text", *pair] for pair in (("copd", "mixed"), ("mixed", "copd"))
    )
    assert ahead.difference.mean == pytest.approx(0.1)
    assert behind.difference.mean == pytest.approx(-0.1)
    assert behind.difference.low == -ahead.difference.high
    assert ahead.probability + behind.probability == pytest.approx(1)
    assert ahead.probability > 0.99
    assert ahead.seeds == (0, 1, 2)
    assert Comparison(Estimate(1, -1, 3), 0.9, (0,)).is_clear is False
    assert Comparison(Estimate(-2, -3, -1), 0.0, (0,)).is_clear is True


def test_headroom_is_the_share_of_what_the_oracle_gains(summary):
    """Base 8, experts 28 and 32, copd 24 and 26 of 40."""
    shares = {row: summary.headroom[row, "copd"].mean for row in ("text", "image", "overall")}
    assert shares == pytest.approx({"text": 16 / 20, "image": 18 / 24, "overall": 34 / 44})
    own = summary.headroom["text", "expert text"]
    assert dataclasses.astuple(own) == pytest.approx((1, 1, 1)), "the oracle itself, paired"
    assert ("text", "base") not in summary.headroom
    assert ("text/add", "copd") not in summary.headroom


def test_headroom_is_not_shown_where_there_is_none(make_study):
    values = {"base": column(20, 20, num_seeds=1), "x": column(20, 30), "copd": column(21, 22)}
    summary = summarize(make_study(values, experts={"text": "x", "image": "x"}))
    assert ("text", "copd") not in summary.headroom
    assert ("image", "copd") in summary.headroom
    assert any("excludes zero on text:" in note for note in notes(summary))


def test_budgets_are_means_over_seeds(summary):
    """The cost of seed s of column c is c (s + 1)."""
    assert summary.budgets["copd"].counts["steps"] == 4 * (1 + 2 + 3) / 3
    assert summary.budgets["copd"].seconds == 240
    assert summary.budgets["base"].counts["sampled_tokens"] == 0
    assert "routed oracle" not in summary.budgets


def test_only_a_clear_lead_is_bold(summary):
    accuracy = sheets(summary, None)[0]
    assert accuracy.heads == summary.columns
    assert accuracy.heads[-1] == "routed oracle"
    marks = {line.label: [cell.mark for cell in line.cells] for line in accuracy.rows}
    assert marks["text"] == ["", "best", "", "", "", ""]
    assert marks["overall"] == ["", "", "", "", "best", ""]


def test_columns_without_a_clear_lead_are_italic(make_study):
    same = column(20, 20)
    summary = summarize(make_study({"a": same, "b": same, "c": column(4, 20)}))
    lines = {line.label: line for line in sheets(summary, None)[0].rows}
    assert [cell.mark for cell in lines["text"].cells] == ["tied", "tied", ""]
    assert [cell.mark for cell in lines["image"].cells] == ["tied", "tied", "tied"]


def test_markdown_tables_are_whole(summary):
    text = to_markdown(summary)
    lines = text.splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len(tables) == sum(2 + len(sheet.rows) for sheet in sheets(summary, None))
    header = "| suite | base | expert text | expert image | mixed | copd | routed oracle |"
    at = lines.index(header)
    assert lines[at + 1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    labels = [line.split(" | ")[0] for line in lines[at + 2 : at + 9]]
    assert labels == [
        f"| {label}"
        for label in (
            "text/add",
            "text/sort",
            "**text**",
            "image/read",
            "image/count",
            "**image**",
            "**overall**",
        )
    ]
    assert "| **overall** | 20.0 \u00b1" in text
    assert "| base | **+40.0 \u00b1" in text


def test_names_cannot_break_markdown(make_study):
    summary = summarize(make_study({"a|b": column(1, 2), "*x* <b>": column(2, 3)}))
    lines = [line for line in to_markdown(summary).splitlines() if line.startswith("| suite")]
    assert lines == [r"| suite | a\|b | \*x\* \<b> |"]


class Reader(HTMLParser):
    """Collects tables as rows of texts, and complains about what a fragment must not have."""

    def __init__(self):
        super().__init__()
        self.open, self.tables, self.captions, self.scopes, self.classes = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "style")
        assert not {"style", "onclick"} & dict(attrs).keys()
        self.open.append(tag)
        self.classes.append((tag, dict(attrs).get("class")))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.scopes.append((tag, dict(attrs).get("scope")))
        elif tag == "caption":
            self.captions.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        elif "caption" in self.open:
            self.captions[-1] += data


def read(text):
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_html_has_the_same_cells_in_semantic_tables(summary):
    reader, expected = read(to_html(summary)), sheets(summary, None)
    assert reader.captions == [sheet.caption for sheet in expected]
    for found, sheet in zip(reader.tables, expected, strict=True):
        assert found[0] == [sheet.corner, *sheet.heads]
        assert found[1:] == [
            [line.label, *(cell.text for cell in line.cells)] for line in sheet.rows
        ]
    assert {scope for tag, scope in reader.scopes if tag == "th"} == {"col", "row"}
    assert {scope for tag, scope in reader.scopes if tag == "td"} == {None}
    names = ["accuracy", "differences", "probabilities", "headroom", "budgets"]
    tables = [own for tag, own in reader.classes if tag == "table"]
    assert tables == [f"study study-{name}" for name in names]
    assert ("td", "best") in reader.classes
    assert ("tr", "domain") in reader.classes


def test_html_is_escaped(make_study):
    name = '<script>"&'
    reader = read(to_html(summarize(make_study({name: column(1, 2), "b": column(2, 3)}))))
    assert reader.tables[0][0] == ["suite", name, "b"]


def test_the_terminal_shows_every_table_and_note(summary):
    out = io.StringIO()
    Console(file=out, width=200).print(to_console(summary))
    text = out.getvalue()
    for sheet in sheets(summary, None):
        assert sheet.rows[0].label in text
    assert "base was measured once" in text


def test_the_reference_is_copd_or_the_last_or_a_given_one(summary, make_study):
    def reference(own, name=None):
        return sheets(own, name)[1].corner

    assert reference(summary) == "copd minus"
    assert reference(summary, "mixed") == "mixed minus"
    other = make_study({"base": column(1, 2, num_seeds=1), "a": column(1, 2), "b": column(2, 3)})
    assert reference(summarize(other)) == "b minus"
    with pytest.raises(ValueError, match="Name one of them"):
        to_markdown(summary, reference="opd")


def test_gaps_are_dashes_with_notes(make_study):
    values = {
        "base": column(8, 8, num_seeds=1),
        "mixed": column(20, 20),
        "copd": {"text": column(24, 0)["text"]},
    }
    missing = ("copd, seed 3", "mopd, seed 0")
    study = make_study(values, missing=missing, skip=[("mixed", 1), ("mixed", 2)])
    summary = summarize(study)
    accuracy = {line.label: line for line in sheets(summary, None)[0].rows}
    assert [cell.text == DASH for cell in accuracy["image"].cells] == [False, False, True]
    assert [cell.text == DASH for cell in accuracy["overall"].cells] == [False, False, True]
    text = "\n".join(notes(summary))
    for note in (
        "base was measured once",
        "mixed has seeds 0 of 0, 1, 2: it is compared on the seeds that both columns have",
        "mixed has one seed",
        "Not finished yet: copd, seed 3; mopd, seed 0.",
        "copd was not measured on image with every seed.",
        "No seed has the experts of all domains",
    ):
        assert note in text
    assert "excludes zero on" not in text
    alone = summarize(make_study({"mixed": column(20, 20)}))
    assert "There is no base" in "\n".join(notes(alone))
    assert [sheet.name for sheet in sheets(alone, None)] == ["accuracy", "budgets"]


def test_strangers_are_not_compared(make_study):
    values = {"a": column(1, 2), "b": column(2, 3)}
    study = make_study(values, skip=[("a", 0), ("b", 1), ("b", 2)])
    summary = summarize(study)
    assert summary.comparisons == {}
    assert any(note.endswith("not compared: a and b.") for note in notes(summary))
    assert sheets(summary, None)[1].rows[0].cells[0].text == DASH


def test_one_problem_has_no_interval_and_a_note(make_study):
    summary = summarize(make_study({"a": {"d": [[1.0], [0.0]]}, "b": {"d": [[0.0], [0.0]]}}))
    assert summary.cells["d", "a"].mean == 0.5
    assert math.isnan(summary.cells["d", "a"].low)
    assert math.isnan(summary.comparisons["d", "a", "b"].probability)
    assert any(note.startswith("One problem only") for note in notes(summary))
    assert "| d/only | *50.0* | *0.0* |" in to_markdown(summary)


def test_probabilities_of_all_or_no_draws_are_bounds():
    assert [percent(p) for p in (0.0, 0.5, 0.9812, 1.0)] == ["<0.1", "50.0", "98.1", ">99.9"]
    assert percent(math.nan) == DASH

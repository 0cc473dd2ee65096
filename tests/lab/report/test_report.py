"""The page as text, of complete, unfinished and damaged runs."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from copd.cli import main
from copd.lab.report import write_report
from copd.lab.report.page import embedded
from copd.monitor.results import from_json, gain, mean_interval, overall
from copd.storage import RENAMED_METRICS, read_lines


class Tables(HTMLParser):
    """The rows of all tables of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._is_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._is_cell = self._is_cell or tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._is_cell = self._is_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.rows[-1][-1] += data


def data_of(html: str) -> dict[str, Any]:
    """Return the values that the scripts of the page read."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found is not None
    return json.loads(found[1])


def notes_of(html: str) -> list[str]:
    """Return the sentences about missing and damaged files."""
    return re.findall(r"<li>(.*?)</li>", html)


@pytest.fixture(scope="session")
def html(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the finished run."""
    out = write_report([run], tmp_path_factory.mktemp("page") / "page.html")
    return out.read_text(encoding="utf-8")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run again, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


@pytest.fixture
def report(copy: Path, tmp_path: Path) -> Callable[[], str]:
    """The page of the copy as it is now."""

    def make() -> str:
        return write_report([copy], tmp_path / "page.html").read_text(encoding="utf-8")

    return make


def test_the_page_is_whole_and_names_nothing_outside_itself(html: str):
    assert html.startswith("<!doctype html>")
    assert "<!--" not in html
    assert not re.findall(r"(?:src|href|url|@import)[=( ]+[\"']?(?:https?:)?//", html)
    assert notes_of(html) == []


def test_the_table_of_results_is_that_of_the_run(run: Path, html: str):
    results = from_json(json.loads((run / "eval.json").read_text()))
    rows = {row[0]: row for row in Tables(html).rows}
    models = ["base", "text", "image", "video", "unified"]
    assert rows["accuracy, %"] == ["accuracy, %", *models, "unified \u2212 base"]
    for suite in ("chain", "compare", "story"):
        values = [str(mean_interval(results[m]["text"].of_suite(suite))) for m in models]
        assert rows[f"text/{suite}"][1:-1] == values
    assert rows["mean"][1:-1] == [str(overall(results[m])) for m in models]
    d = gain(results["unified"], results["base"])["mean"]
    expected = f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    assert rows["mean"][-1].replace("\u2212", "-") == expected


def test_the_table_of_costs_sums_the_last_line(run: Path, html: str):
    cost = list(read_lines(run / "metrics.jsonl"))[-1]["cost"]
    total = sum(own["sampled_tokens"] for own in cost.values())
    [row] = [row for row in Tables(html).rows if row[0] == "total"]
    assert row[4] == f"{total:,}"
    assert row[1] == "12"


def test_curves_are_the_metrics(run: Path, html: str):
    [own] = data_of(html)["runs"]
    [line] = [
        s for s in own["series"] if (s["q"], s["b"], s["teacher"]) == ("overlap", "text", "image")
    ]
    key = "opd/from_image/image/overlap"
    lines = list(read_lines(run / "metrics.jsonl"))
    assert line["kind"] == "cross"
    assert line["x"] == [3, 4]
    assert line["y"] == pytest.approx([r["branches"]["text"][key] for r in lines[2:]], rel=1e-4)
    assert own["stages"] == [["rlvr", 2], ["mutual", 2]]
    [points] = [
        m for m in own["measured"] if (m["b"], m["domain"], m["suite"]) == ("text",) * 2 + ("",)
    ]
    assert points["x"] == [0, 2, 4]


def test_former_metric_names_are_shown_like_the_current_ones(
    copy: Path, html: str, report: Callable[[], str]
):
    path = copy / "metrics.jsonl"
    text = path.read_text()
    for former, current in RENAMED_METRICS.items():
        assert f'/{current}"' in text
        text = text.replace(f'/{current}"', f'/{former}"')
    path.write_text(text)
    [own], [other] = data_of(html)["runs"], data_of(report())["runs"]
    assert any(line["q"] == "frac_reward_zero_std" for line in own["series"])
    assert other | {"name": own["name"]} == own


def test_a_rollout_comes_with_its_problem_tokens_signal_and_reading(run: Path, html: str):
    rollouts = data_of(html)["rollouts"]
    records = list(read_lines(run / "rollouts.jsonl"))
    assert len(rollouts["groups"]) == len(records) == rollouts["recorded"]
    for record, group in zip(records, rollouts["groups"], strict=True):
        assert group["index"] == record["problem"]["index"]
        for saved, shown in zip(record["rollouts"], group["rollouts"], strict=True):
            texts = [rollouts["token_texts"][i] for i in shown["tokens"]]
            assert "".join(texts).removesuffix("<|im_end|>") == saved["text"]
            assert len(texts) == len(saved["token_ids"])
            assert shown["delta"] == saved.get("delta")
            assert shown["reading"] == saved["text"].rpartition("#")[2] * ("#" in saved["text"])
            assert (shown["reading"] == group["answer"]) == (saved["reward"] == 1.0)
        assert sum(r["advantage"] for r in group["rollouts"]) == pytest.approx(0, abs=1e-3)
    clips = [g["parts"][0] for g in rollouts["groups"] if g["domain"] == "video"]
    assert all(len(clip["frames"]) == clip["of"] for clip in clips)


def test_a_run_is_not_changed(copy: Path, report: Callable[[], str]):
    def state() -> dict[str, tuple[str, int]]:
        return {
            str(f): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns)
            for f in copy.rglob("*")
            if f.is_file()
        }

    before = state()
    report()
    assert state() == before


def test_an_unfinished_run_is_shown_up_to_its_last_step(copy: Path, report: Callable[[], str]):
    shutil.rmtree(copy / "final")
    results = json.loads((copy / "eval.json").read_text())
    (copy / "eval.json").write_text(json.dumps({"base": results["base"]}))
    (copy / "evaluations.jsonl").unlink()
    for name, size in (("metrics.jsonl", 3), ("rollouts.jsonl", 5), ("timings.jsonl", 3)):
        lines = (copy / name).read_text().splitlines(keepends=True)
        (copy / name).write_text("".join(lines[:size]) + lines[size][: len(lines[size]) // 2])
    html = report()
    assert "not finished, step 3 of 4" in html
    assert notes_of(html) == []
    assert data_of(html)["rollouts"]["recorded"] == 5
    assert "trained models are evaluated when the run ends" in html


def test_runs_of_a_study_are_in_its_order_and_finished_once_measured(run: Path, tmp_path: Path):
    """A study evaluates the base itself; experts that other runs start from are not evaluated."""
    config = json.loads((run / "config.json").read_text())
    config["evaluation"] |= {"base": False, "branches": False}
    results = json.loads((run / "eval.json").read_text())
    for name in ("_experts1/seed_2", "copd/seed_2", "mixed/seed_10", "mixed/seed_2"):
        folder = shutil.copytree(run, tmp_path / "runs" / name)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "eval.json").write_text(json.dumps({"unified": results["unified"]}))
    (tmp_path / "runs" / "_experts1" / "seed_2" / "eval.json").unlink()
    (tmp_path / "study.json").write_text(json.dumps({"methods": {"mixed": {}, "copd": {}}}))
    rows = Tables(write_report([tmp_path]).read_text()).rows
    states = [(row[0], row[3]) for row in rows if row[0].partition("/")[2].startswith("seed_")]
    assert states == [
        ("mixed/seed_2", "finished, 4 steps"),
        ("mixed/seed_10", "finished, 4 steps"),
        ("copd/seed_2", "finished, 4 steps"),
        ("_experts1/seed_2", "all 4 steps done, not evaluated"),
    ]


def test_a_run_that_has_only_begun(copy: Path, report: Callable[[], str]):
    for path in copy.iterdir():
        if path.name not in ("config.json", "plan.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    html = report()
    assert notes_of(html) == []
    assert "Nothing has been evaluated on held-out problems yet." in html


@pytest.mark.parametrize(
    ("name", "text", "note"),
    [
        (
            "metrics.jsonl",
            "{}\n",
            "metrics.jsonl is damaged in line 1: only the lines before it are shown.",
        ),
        ("metrics.jsonl", '{"step": "x", "branches": {}}\n', "metrics.jsonl is damaged in line 1"),
        ("metrics.jsonl", '{"step": 1, "branches": [3]}\n', "Learning curves left out"),
        ("timings.jsonl", "\ufffd\x00\n", "timings.jsonl is damaged in line 1"),
        ("rollouts.jsonl", "[]\n", "rollouts.jsonl is damaged in line 1"),
        ("evaluations.jsonl", '{"step": 2, "results": {"text": 3}}\n', "over steps left out"),
        ("dynamics.jsonl", '{"step": 2, "models": ["a"], "domains": {"d": 1}}\n', "pairs left out"),
        ("eval.json", "{", "eval.json is damaged"),
        ("eval.json", '{"base": {}}', "eval.json is damaged: a model has no evaluated problems."),
        ("plan.json", "[]", "plan.json is damaged: it is not a JSON object."),
        ("plan.json", '{"stages": [{"name": "rlvr"}]}', "plan.json is damaged: no"),
        ("config.json", "{", "config.json is damaged"),
        ("config.json", '{"seed": 3}', "config.json cannot be loaded"),
    ],
)
def test_a_damaged_file_is_a_sentence(
    name: str, text: str, note: str, copy: Path, report: Callable[[], str]
):
    (copy / name).write_text(text)
    [found] = [sentence for sentence in notes_of(report()) if note in sentence]
    assert found.endswith(".")


def test_a_damaged_rollout_leaves_the_others(copy: Path, report: Callable[[], str]):
    lines = (copy / "rollouts.jsonl").read_text().splitlines(keepends=True)
    broken = json.loads(lines[1])
    broken["rollouts"][0].pop("token_ids")
    lines[1] = json.dumps(broken) + "\n"
    (copy / "rollouts.jsonl").write_text("".join(lines))
    html = report()
    [note] = notes_of(html)
    assert note.startswith("rollouts.jsonl, line 2 left out: no")
    assert len(data_of(html)["rollouts"]["groups"]) == len(lines) - 1


def test_a_missing_plan_is_a_sentence(copy: Path, report: Callable[[], str]):
    (copy / "plan.json").unlink()
    html = report()
    assert notes_of(html) == ["plan.json is missing."]
    assert "no readable plan" in html


def test_a_model_that_moved_leaves_the_text(copy: Path, report: Callable[[], str]):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["path"] = "/nowhere/model"
    (copy / "config.json").write_text(json.dumps(config))
    html = report()
    [note] = notes_of(html)
    assert (
        "completions are shown without tokens: no tokenizer of &#x27;/nowhere/model&#x27;" in note
    )
    groups = data_of(html)["rollouts"]["groups"]
    assert all(r["tokens"] is None and r["text"] for g in groups for r in g["rollouts"])


def test_text_cannot_end_the_data():
    text = "</script><!-- <script> \u2028 & \"'"
    assert "<" not in embedded({"text": text})
    assert json.loads(embedded({"text": text})) == {"text": text}


def test_seeds_of_one_recipe_come_together(run: Path, copy: Path, tmp_path: Path):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "seed": 7}))
    other = Path(shutil.copytree(run, tmp_path / "other"))
    changed = {**config, "optimizer": {**config["optimizer"], "learning_rate": 1e-3}}
    (other / "config.json").write_text(json.dumps(changed))
    html = write_report([run, copy, other], tmp_path / "page.html").read_text()
    assert data_of(html)["groups"] == [
        {"label": "copd, seeds 0, 7", "runs": [0, 1]},
        {"label": "other", "runs": [2]},
    ]


def test_the_command(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["report", str(copy)]) == 0
    assert capsys.readouterr().out == f"report: {copy / 'report.html'}\n"
    assert (copy / "report.html").stat().st_size < 400_000
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a run: expected a config.json in it" in capsys.readouterr().err
    assert main(["report", str(copy), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "Make the folder, or name another." in capsys.readouterr().err

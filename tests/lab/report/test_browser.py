"""The page in a real browser, driven by mouse and keyboard."""

import json
import re
import shutil
from pathlib import Path

import pytest

from copd.lab.report import write_report
from copd.lab.study.results import Outcome, StudyResults, save_results
from copd.monitor.results import from_json
from copd.run.cost import COUNTS
from copd.storage import append_lines, read_lines
from tests.lab.report.conftest import Browser

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the page of the finished run."""
    return write_report([run], tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    """Open the page on a wide screen that prefers light."""
    browser.emulate()
    browser.open(page)
    return browser


def chart(quantity: str, place: int) -> str:
    """Return the selector of a chart of the learning curves."""
    return f'[data-quantity="{quantity}"] figure:nth-child({place}) svg'


def choose(browser: Browser, label: str, value: str) -> None:
    """Pick an option of a list by typing its first letter."""
    script = (
        "[...document.querySelectorAll('#rollouts-bar label')]"
        f".find((l) => l.firstChild.data === {json.dumps(label)}).querySelector('select').focus()"
    )
    browser.evaluate(script)
    browser.press(*value)


def test_it_opens_without_errors_and_loads_nothing(opened: Browser, page: Path):
    assert opened.errors == []
    assert opened.requests == [page.resolve().as_uri()]
    shown = "[...document.querySelectorAll('nav a')].filter((a) => !a.hidden).length"
    assert opened.evaluate(shown) == 4
    assert opened.count("#curves figure") >= 3 * 7
    assert opened.count("#curves svg path.line") > opened.count("#curves figure")
    assert opened.count(f"{chart('reward', 1)} rect.stage") == 1


def test_nothing_is_wider_than_the_screen(browser: Browser, page: Path):
    for width in (1280, 700, 360):
        browser.emulate(width=width)
        browser.open(page)
        assert browser.evaluate("document.documentElement.scrollWidth") == width


def test_a_chart_is_read_with_the_mouse(opened: Browser, run: Path):
    opened.evaluate("document.querySelector('#smooth').value = 0")
    opened.evaluate("document.querySelector('#smooth').dispatchEvent(new Event('input'))")
    opened.hover(chart("reward", 2))
    read = opened.text("#curves .read:not([hidden])")
    [step] = re.findall(r"step (\d)", read)
    metrics = list(read_lines(run / "metrics.jsonl"))[int(step) - 1]["branches"]
    value = metrics["image"]["rlvr/image/reward"]
    assert re.search(rf"image\s+{value:.3g}\b", read)
    row = '[data-quantity="reward"]'
    assert opened.count(f"{row} line.cross") == 3
    opened.hover("h1")
    assert opened.count("line.cross") == 0


def test_smoothing_is_an_exponential_mean(opened: Browser, run: Path):
    lines = list(read_lines(run / "metrics.jsonl"))
    values = [line["branches"]["text"]["rlvr/text/length"] for line in lines]
    weights = [0.5**k for k in range(4)]
    mean = sum(w * v for w, v in zip(weights, reversed(values), strict=True)) / sum(weights)
    opened.evaluate(f"document.querySelector({json.dumps(chart('length', 1))}).focus()")
    opened.press("End")
    assert re.search(rf"text\s+{mean:.3g}\b", opened.text("#curves .read:not([hidden])"))


def test_a_chart_is_read_with_keys_and_as_a_table(opened: Browser, run: Path):
    opened.evaluate(f"document.querySelector({json.dumps(chart('overlap', 2))}).focus()")
    opened.press("ArrowLeft")
    slider = f"document.querySelector({json.dumps(chart('overlap', 2))})"
    assert opened.evaluate(f"{slider}.getAttribute('aria-valuenow')") == "4"
    opened.press("ArrowLeft")
    text = opened.evaluate(f"{slider}.getAttribute('aria-valuetext')")
    value = list(read_lines(run / "metrics.jsonl"))[2]["branches"]["text"]
    assert text.startswith("step 3, ")
    assert f"text from image {value['opd/from_image/image/overlap']:.3g}" in text
    opened.click('[data-quantity="reward"] figure:nth-child(1) .numbers summary')
    rows = '[data-quantity="reward"] figure:nth-child(1) tbody tr'
    opened.until(f"document.querySelectorAll({json.dumps(rows)}).length === 4")


def test_a_branch_can_be_hidden(opened: Browser):
    before = opened.count(f"{chart('entropy', 1)} path.line:not(.raw)")
    opened.click("#curves-bar button.swatch")
    assert opened.count(f"{chart('entropy', 1)} path.line:not(.raw)") == before - 1
    opened.click("#curves-bar button.swatch")
    assert opened.count(f"{chart('entropy', 1)} path.line:not(.raw)") == before


def test_matrices_move_with_the_slider(opened: Browser, run: Path):
    assert "This run has no dynamics.jsonl" in opened.text("#matrices-note")
    metrics = list(read_lines(run / "metrics.jsonl"))
    opened.click("#moment")
    for key, step in (("Home", 3), ("ArrowRight", 4)):
        opened.press(key)
        assert opened.text("#matrices-bar output") == f"step {step}, mutual"
        value = metrics[step - 1]["branches"]["video"]["opd/from_text/text/overlap"]
        cell = '[data-domain="text"] .matrix:first-of-type tbody tr:nth-child(3) td:nth-child(2)'
        assert opened.text(cell) == f"{value:.3g}"


def test_rollouts_are_filtered_and_walked_with_keys(opened: Browser, run: Path):
    count = "#rollout-count"
    records = list(read_lines(run / "rollouts.jsonl"))
    assert opened.text(count) == f"{len(records)} of {len(records)}"
    choose(opened, "Branch", "image")
    choose(opened, "Batch", "cross")
    own = [r for r in records if r["branch"] == "image" and r["action"].startswith("opd")]
    assert opened.text(count) == f"{len(own)} of {len(records)}"
    heads = [f"step {r['step']}, image on {r['problem']['domain']}" for r in own]
    opened.click("#rollout-list li")
    assert opened.text("#rollout-detail h3").startswith(heads[0])
    opened.press("ArrowDown", "ArrowDown", "ArrowUp")
    assert opened.text("#rollout-detail h3").startswith(heads[1])
    opened.click("#rollouts-title")
    opened.press("j", "j", "k")
    assert opened.text("#rollout-detail h3").startswith(heads[2])
    active = opened.evaluate(
        "document.querySelector('#rollout-list').ariaActiveDescendantElement.id"
    )
    assert opened.count(f"#{active}[aria-selected='true']") == 1


def test_a_token_shows_its_signal(opened: Browser, run: Path):
    records = list(read_lines(run / "rollouts.jsonl"))
    first = next(r for r in records if r["action"].startswith("opd"))["rollouts"][0]
    choose(opened, "Batch", "cross")
    opened.evaluate("document.querySelector('.completions .tokens').focus()")
    delta = max(first["delta"], key=abs)
    place = first["delta"].index(delta)
    opened.press(*["ArrowRight"] * (place + 1))
    size, sign = f"{abs(delta):.3f}", "+" if delta > 0 else "\u2212"
    assert float(size) > 0
    for box in ("#tip", "#live"):
        assert f"\u03b4 = {sign}{size} nats" in opened.text(box)
    assert opened.evaluate("document.querySelector('.t.at').textContent") == first["text"][place]
    assert opened.text(".completions .reading:not(.heads *)") in first["text"] + "no answer"


def test_a_clip_plays(opened: Browser):
    choose(opened, "Domain", "video")
    frames = opened.count(".frames img")
    assert frames >= 8
    loaded = "[...document.querySelectorAll('.frames img')].every((i) => i.naturalWidth === 16)"
    opened.until(loaded)
    opened.click("button.play")
    assert opened.text("button.play") == "Stop"
    assert opened.count(".frames img.now") == 1
    opened.click("button.play")
    assert opened.text("button.play") == "Play"
    assert opened.count(".frames img.now") == 0


def test_light_and_dark_follow_the_system_until_one_is_chosen(browser: Browser, page: Path):
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.emulate(scheme="dark")
    browser.open(page)
    dark = browser.evaluate(paper)
    browser.emulate(scheme="light")
    light = browser.evaluate(paper)
    assert dark != light
    browser.click("#theme")
    assert browser.evaluate(paper) == dark
    browser.emulate(scheme="light")
    browser.press("Tab")
    assert browser.evaluate(paper) == dark


def test_every_control_is_reached_by_tab(opened: Browser):
    expected = ["theme", "smooth", "moment", "step-from", "step-to", "rollout-list"]
    seen: list[str] = []
    while "rollout-list" not in seen and len(seen) < 200:
        opened.press("Tab")
        seen.append(opened.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert [name for name in seen if name in expected] == expected
    assert seen.count("svg") == opened.count("svg")


def test_on_paper_folds_are_open_and_controls_are_gone(opened: Browser):
    assert opened.pdf().startswith(b"%PDF-")
    opened.emulate(media="print")
    opened.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert opened.count("details[data-print]:not([open])") == 0
    gone = "['nav', '.list', '#tip', '.numbers', '#smooth'].every((s) =>"
    gone += " getComputedStyle(document.querySelector(s)).display === 'none')"
    assert opened.evaluate(gone)
    opened.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.count("details[data-print]:not([open])") == 2


def test_seeds_have_a_band_and_dynamics_all_pairs(browser: Browser, run: Path, tmp_path: Path):
    other = Path(shutil.copytree(run, tmp_path / "other"))
    config = json.loads((run / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "seed": 7}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["branches"]["text"]["rlvr/text/reward"] /= 2
    (other / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = {"overlap": [[1.0, 0.25], [0.5, 1.0]], "symmetric_kl": [[0.0, 3.0], [2.0, 0.0]]}
    moment = {"step": 2, "stage": "rlvr", "models": ["text", "base"], "domains": {"text": table}}
    append_lines(other / "dynamics.jsonl", [moment])
    browser.emulate()
    browser.open(write_report([run, other], tmp_path / "page.html"))
    assert browser.errors == []
    assert browser.count(f"{chart('reward', 1)} path.band") >= 1
    browser.evaluate("document.querySelector('#matrices-bar select').focus()")
    browser.press("o")
    assert "no dynamics.jsonl" not in browser.text("#matrices-note")
    assert browser.text("table.matrix tbody tr:nth-child(1) td:nth-child(3)") == "0.25"


def test_a_study_shows_its_tables_and_runs(browser: Browser, run: Path, tmp_path: Path):
    study = tmp_path / "study"
    shutil.copytree(run, study / "runs" / "copd" / "seed_0")
    measured = from_json(json.loads((run / "eval.json").read_text()))
    cost: dict[str, int] = dict.fromkeys(COUNTS, 5)
    outcomes = [
        Outcome(name, "base" if name == "base" else "copd", 0, measured[own], cost, 1.0)
        for name, own in (("base", "base"), ("copd", "unified"))
    ]
    results = StudyResults("A study of <two>", "branch_steps", {}, tuple(outcomes), (), {})
    save_results(study / "results.json", results)
    browser.emulate()
    browser.open(write_report([study]))
    assert browser.errors == []
    assert browser.text(".study h2") == "A study of <two>"
    assert browser.count("table.study") >= 3
    assert browser.text("details.run summary .name") == "copd/seed_0"
    (study / "results.json").write_text("{")
    browser.open(write_report([study]))
    assert "study has no comparison to show yet" in browser.text(".study")

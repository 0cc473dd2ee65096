"""The display of a study: a table on a terminal, lines elsewhere."""

import io
import json
from pathlib import Path

from rich.console import Console

from copd.lab.compare.jobs import study_jobs
from copd.lab.compare.view import StudyView, duration


def test_lines_where_there_is_no_terminal(make_study, tmp_path: Path):
    _, experts, opd = study_jobs(make_study("--seeds", "[0]"), tmp_path)
    text = io.StringIO()
    with StudyView(Console(file=text, width=200), [experts, opd]) as view:
        view.started(experts)
        view.refresh([experts])
        view.ended(experts, "exit code 1; [all] of it")
    lines = text.getvalue().splitlines()
    assert lines == [
        f"experts, seed 0 started: {experts.root}",
        "experts, seed 0 failed: exit code 1; [all] of it",
    ]


def test_a_table_on_a_terminal(make_study, tmp_path: Path):
    _, experts, opd = study_jobs(make_study("--seeds", "[0]"), tmp_path)
    opd.root.mkdir(parents=True)
    lines = [json.dumps({"step": step, "seconds": 1.0}) + "\n" for step in (1, 2, 3)]
    (opd.root / "timings.jsonl").write_text("".join(lines) + '{"step": 4')
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=True, highlight=False)
    with StudyView(console, [experts, opd]) as view:
        view.started(opd)
        view.refresh([opd])
    shown = text.getvalue()
    assert "opd, seed 0" in shown and "step 3/4" in shown and "0 of 2 jobs done" in shown


def test_durations_have_two_units_at_most():
    assert [duration(s) for s in (0.4, 89, 90, 5900, 7260)] == [
        "0 s",
        "89 s",
        "2 min",
        "98 min",
        "2 h 01 min",
    ]

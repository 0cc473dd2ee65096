"""`copd compare`: reads a study, runs what is missing, writes the tables.

Knows no torch until there are results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from copd.config.study import Study, load_study
from copd.lab.compare.describe import describe_study
from copd.lab.compare.jobs import STUDY_FILE, Job, study_jobs
from copd.lab.compare.progress import check_unchanged, is_done
from copd.lab.compare.scheduler import Scheduler
from copd.lab.compare.view import StudyView
from copd.storage import write_atomically


def show_plan(path: Path, overrides: Sequence[str]) -> None:
    """Prints the runs, their budgets and what is shared."""
    study = load_study(path, overrides)
    print(describe_study(study, study_jobs(study, study.output_dir)))


def compare(path: Path, overrides: Sequence[str], *, run: bool) -> dict[str, str]:
    """Runs what is missing, unless told not to, then writes and prints the tables.

    Returns the failed jobs with their reasons.
    """
    study = load_study(path, overrides)
    jobs = study_jobs(study, study.output_dir)
    for job in jobs:
        check_unchanged(job)
    console = Console()
    failed = _run(study, jobs, console) if run else {}
    _write_tables(study, jobs, console)
    return failed


def _run(study: Study, jobs: Sequence[Job], console: Console) -> dict[str, str]:
    root = study.output_dir
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / STUDY_FILE, study.model_dump_json(indent=2))
    with StudyView(console, jobs) as view:
        return Scheduler(root, jobs, study.jobs, view).run()


def _write_tables(study: Study, jobs: Sequence[Job], console: Console) -> None:
    missing = [job.name for job in jobs if job.is_measured and not is_done(job)]
    if len(missing) == sum(job.is_measured for job in jobs):
        console.print("nothing is measured yet")
        return
    from copd.lab.compare.outcomes import collect
    from copd.lab.study import save_results, summarize, to_console, to_html, to_markdown

    root, results = study.output_dir, collect(study, jobs)
    save_results(root / "results.json", results)
    summary = summarize(results)
    write_atomically(root / "table.md", to_markdown(summary))
    write_atomically(root / "table.html", to_html(summary))
    console.print(to_console(summary))
    if missing:
        console.print(f"not finished: {'; '.join(missing)}", soft_wrap=True)
    console.print(f"tables: {root / 'table.md'}, {root / 'table.html'}", soft_wrap=True)

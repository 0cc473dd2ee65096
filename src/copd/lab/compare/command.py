"""`copd compare`: load a study, run what is missing, write the tables."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from copd.config import BASE
from copd.config.study import Study, load_study
from copd.domains import with_sizes
from copd.lab.compare.jobs import STUDY_FILE, Job, study_jobs, total_branch_steps
from copd.lab.compare.progress import (
    check_unchanged,
    completions_to_evaluate,
    completions_to_train,
    is_done,
)
from copd.lab.compare.scheduler import Scheduler
from copd.lab.compare.view import StudyView
from copd.planning.cost import plan_cost
from copd.storage import write_atomically

_HEAD = ("method", "recipe", "branch steps", "prompts", "tokens up to", "columns")


def show_plan(path: Path, overrides: Sequence[str]) -> None:
    """Print the runs of a study, their budgets and what they share."""
    study = load_study(path, overrides)
    print(describe_study(study, study_jobs(study, study.output_dir)))


def describe_study(study: Study, jobs: Sequence[Job]) -> str:
    """Return the budgets of one seed by method, what is shared, and how much is done."""
    one_seed = [job for job in jobs if job.seed == study.seeds[0]]
    rows = [_HEAD, *(_row(study, job) for job in one_seed if job.method != BASE)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{a}{width}}}" for a, width in zip("<<>>><", widths, strict=True))
    equal = "branch steps" if study.tokens is None else f"tokens: {study.tokens:,} sampled"
    seeds = ", ".join(map(str, study.seeds))
    shared = [_shared(job) for job in one_seed if job.start]
    evaluation, domains = one_seed[0].config.evaluation, ", ".join(one_seed[0].config.domains)
    times = f" x {evaluation.num_samples}" if evaluation.num_samples > 1 else ""
    return "\n".join(
        [
            f"{study.title}: {len(study.methods)} methods, seeds {seeds}",
            f"{len(jobs)} jobs, {sum(map(is_done, jobs))} of them done, {study.jobs} side by side; "
            f"equal on {equal}",
            "",
            *(line.format(*row).rstrip() for row in rows),
            "",
            *([*shared, ""] if shared else []),
            f"Every column is measured on {evaluation.num_problems:,} problems{times} of "
            f"{domains}; the base once for all seeds.",
            f"All seeds together: {sum(map(completions_to_train, jobs)):,} completions to train "
            f"on, {sum(map(completions_to_evaluate, jobs)):,} to measure.",
        ]
    )


def run_study(path: Path, overrides: Sequence[str], *, run: bool) -> dict[str, str]:
    """Run what is missing if `run`, then write and print the tables.

    Returns the failed jobs with their reasons.
    """
    study = load_study(path, overrides)
    root = study.output_dir
    jobs = study_jobs(study, root)
    for job in jobs:
        check_unchanged(job)
    console, failed = Console(), dict[str, str]()
    if run:
        root.mkdir(parents=True, exist_ok=True)
        write_atomically(root / STUDY_FILE, study.model_dump_json(indent=2))
        for job in jobs:
            if not is_done(job):
                with_sizes(job.config, lambda _: None)  # stores the index that the job will read
        with StudyView(console, jobs) as view:
            failed = Scheduler(root, jobs, study.jobs, view).run()
    _write_tables(study, jobs, console)
    return failed


def _write_tables(study: Study, jobs: Sequence[Job], console: Console) -> None:
    missing = [job.name for job in jobs if job.is_measured and not is_done(job)]
    if len(missing) == sum(job.is_measured for job in jobs):
        console.print("nothing is measured yet")
        return
    from copd.lab.compare.outcomes import collect  # imports torch
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


def _row(study: Study, job: Job) -> tuple[str, ...]:
    cost = plan_cost(job.plan, job.config).total
    method = study.methods.get(job.method)
    mark = " (own)" if method and method.budget == "own" else ""
    return (
        job.method,
        job.config.recipe.type,
        f"{total_branch_steps(job.plan)}{mark}",
        f"{cost.prompts:,}",
        f"{cost.sampled_tokens:,}",
        ", ".join(job.columns.values()) or "(only shared)",
    )


def _shared(job: Job) -> str:
    assert job.start
    steps = job.start.step * len(job.plan.stages[0].trained)
    return (
        f"{job.method} begins after step {job.start.step} of {job.start.method}: "
        f"{steps} of its {total_branch_steps(job.plan)} branch steps are trained there."
    )

"""A study before it runs, as text: its runs, their budgets, and what is shared. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence

from copd.config import BASE
from copd.config.study import Study
from copd.lab.compare.fairness import total_branch_steps
from copd.lab.compare.jobs import Job
from copd.lab.compare.progress import is_done, to_measure, to_train
from copd.planning.cost import plan_cost

_HEAD = ("method", "recipe", "branch steps", "prompts", "tokens up to", "columns")


def describe_study(study: Study, jobs: Sequence[Job]) -> str:
    """Budgets per method for one seed, what begins where, and how much is done."""
    one_seed = [job for job in jobs if job.seed == study.seeds[0]]
    rows = [_HEAD, *(_row(study, job) for job in one_seed if job.method != BASE)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join(
            [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
            + [cell.rjust(width) for cell, width in zip(row[2:5], widths[2:5], strict=True)]
            + [row[5]]
        )
        for row in rows
    ]
    done, seeds = sum(map(is_done, jobs)), ", ".join(map(str, study.seeds))
    return "\n".join(
        [
            f"{study.title}: {len(study.methods)} methods, seeds {seeds}",
            f"{len(jobs)} jobs, {done} of them done, {study.jobs} side by side; equal on "
            + ("branch steps" if study.tokens is None else f"tokens: {study.tokens:,} sampled"),
            "",
            *table,
            "",
            *_sharing(one_seed),
            f"Every column is measured on {_problems(one_seed[0])}; the base once for all seeds.",
            f"All seeds together: {sum(map(to_train, jobs)):,} completions to train on, "
            f"{sum(map(to_measure, jobs)):,} to measure.",
        ]
    )


def _row(study: Study, job: Job) -> tuple[str, ...]:
    cost = plan_cost(job.plan, job.config.rollout).total
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


def _sharing(jobs: Sequence[Job]) -> list[str]:
    lines = []
    for job in jobs:
        if job.start:
            steps = total_branch_steps(job.plan)
            spared = job.start.step * len(job.plan.stages[0].trained)
            lines.append(
                f"{job.method} begins after step {job.start.step} of {job.start.method}: "
                f"{spared} of its {steps} branch steps are trained there."
            )
    return [*lines, ""] if lines else []


def _problems(job: Job) -> str:
    evaluation, domains = job.config.evaluation, job.config.domains
    times = f" x {evaluation.num_samples}" if evaluation.num_samples > 1 else ""
    return f"{evaluation.num_problems:,} problems{times} of {', '.join(domains)}"

"""From a study to the jobs it needs: one per method and seed, the base, and shared experts.

Knows no torch and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copd.config import BASE, Config, CoPDConfig, ExpertsConfig, MergeConfig
from copd.config.study import Study
from copd.lab.compare.fairness import check_budgets, check_columns, check_problems
from copd.lab.compare.sharing import Sharing, Start, share_experts
from copd.recipes import Plan, build_plan

STUDY_FILE = "study.json"
"""The study as read, below its folder."""


@dataclass(frozen=True)
class Job:
    """One piece of work in a process of its own; its folder is `config.output_dir`."""

    method: str
    seed: int
    config: Config
    start: Start | None = None
    """The run of experts, with the same seed, that this one can begin from."""
    merges: Mapping[str, MergeConfig] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    """Measured model to its column in the tables, `merges` included; none for shared experts that
    are nobody's result."""

    @property
    def name(self) -> str:
        """As a person reads it."""
        return "the base" if self.method == BASE else f"{self.method}, seed {self.seed}"

    @property
    def root(self) -> Path:
        return self.config.output_dir

    @property
    def plan(self) -> Plan:
        return build_plan(self.config)

    @property
    def is_measured(self) -> bool:
        """False for shared experts that are nobody's result."""
        return bool(self.columns)


def study_jobs(study: Study, root: Path) -> tuple[Job, ...]:
    """All jobs, in the order in which they should start: seed by seed, shared experts first.

    Refuses a study that compares what cannot be compared.
    """
    configs = {name: _config(study, name) for name in study.methods}
    plans = {name: build_plan(config) for name, config in configs.items()}
    columns = {name: _columns(study, name, configs[name], plans[name]) for name in configs}
    check_budgets(study, plans)
    check_problems(configs)
    check_columns(columns)
    shared = share_experts(configs)
    config = next(iter(configs.values())).model_copy(update={"output_dir": root / BASE})
    base = Job(BASE, study.seeds[0], config, columns={BASE: BASE})
    leaders_first = sorted({**shared.hidden, **configs}, key=lambda n: n not in shared.milestones)
    return (
        base,
        *(
            Job(
                name,
                seed,
                _placed({**shared.hidden, **configs}[name], name, seed, root, shared),
                shared.starts.get(name),
                study.methods[name].merges if name in study.methods else {},
                columns.get(name, {}),
            )
            for seed in study.seeds
            for name in leaders_first
        ),
    )


def expert_columns(study: Study, jobs: tuple[Job, ...]) -> dict[str, str]:
    """Domain to the column of its expert: of the first method whose results are experts."""
    for job in jobs:
        if job.method in study.methods and isinstance(job.config.recipe, ExpertsConfig):
            branches = job.config.branches.items()
            found = {d: job.columns[b] for b, d in branches if b in job.columns}
            if found:
                return found
    return {}


def _config(study: Study, method: str) -> Config:
    """A run's configuration; the study measures the base itself, and branches only where asked."""
    settings = study.settings(method)

    def section(name: str, defaults: dict[str, Any]) -> dict[str, Any]:
        given = settings.get(name, {})
        return {**defaults, **given} if isinstance(given, dict) else given

    is_free = study.methods[method].budget == "own"
    extra = {
        "max_tokens": None if is_free else study.tokens,
        "seed": study.seeds[0],
        "evaluation": section("evaluation", {"branches": False}) | {"base": False},
        "engine": section("engine", {"num_threads": 1}),
    }
    return study.config(method, extra)


def _placed(config: Config, name: str, seed: int, root: Path, shared: Sharing) -> Config:
    """The configuration of one seed, with checkpoints where other runs begin."""
    milestones = shared.milestones.get(name, ())
    checkpoint = config.checkpoint.model_copy(update={"milestones": milestones})
    folder = root / "runs" / name / f"seed_{seed}"
    return config.model_copy(update={"seed": seed, "output_dir": folder, "checkpoint": checkpoint})


def _columns(study: Study, name: str, config: Config, plan: Plan) -> dict[str, str]:
    """The models a method is measured by and how the tables call them."""
    method = study.methods[name]
    label = method.label or name
    if plan.final is None:  # every branch is a result
        prefix = "expert" if label == "experts" else label
        columns = {branch: f"{prefix} {branch}" for branch in plan.branches}
    else:
        columns = {plan.final: label}
        if config.evaluation.branches:
            others = [branch for branch in plan.branches if branch != plan.final]
            columns |= {branch: f"{label}: branch {branch}" for branch in others}
    for merge in method.merges:
        merge_config(config, name, method.merges[merge])
    return columns | {merge_model(merge): f"{label}: {merge}" for merge in method.merges}


def merge_model(merge: str) -> str:
    """The name of a further merge among the measured models; no branch can have it."""
    return f"merge {merge}"


def merge_config(config: Config, method: str, merge: MergeConfig) -> Config:
    """The configuration of a run that would end with this merge of the same branches."""
    if not isinstance(config.recipe, ExpertsConfig | CoPDConfig):
        raise ValueError(
            f"methods.{method}.merges needs a recipe with branches to merge: got "
            f"{config.recipe.type!r}, expected 'experts' or 'copd'. Remove it."
        )
    recipe = config.recipe.model_copy(update={"merge": merge})
    recipe.check(config.branches, config.domains)
    return config.model_copy(update={"recipe": recipe})

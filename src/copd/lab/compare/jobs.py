"""The jobs of a study: one per method and seed, one for the base, and the shared experts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from copd.config import BASE, Config, CoPDConfig, ExpertsConfig, MergeConfig
from copd.config.study import MethodConfig, Study
from copd.lab.compare.sharing import Start, share_experts
from copd.recipes import Plan, build_plan

STUDY_FILE = "study.json"
"""The study as loaded, in its folder."""


@dataclass(frozen=True)
class Job:
    """A run, or the evaluation of the base, in a process and a folder of its own."""

    method: str
    seed: int
    config: Config
    start: Start | None = None
    """The run of experts, with the same seed, that this one can begin from."""
    merges: Mapping[str, MergeConfig] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    """Evaluated model to its column in the tables, `merges` included; empty for hidden experts."""

    @property
    def name(self) -> str:
        """The job's name in messages."""
        return "the base" if self.method == BASE else f"{self.method}, seed {self.seed}"

    @property
    def root(self) -> Path:
        """The job's folder."""
        return self.config.output_dir

    @property
    def plan(self) -> Plan:
        """The plan of its run."""
        return build_plan(self.config)

    @property
    def is_measured(self) -> bool:
        """False for hidden experts, which are no method's result."""
        return bool(self.columns)


def study_jobs(study: Study, root: Path) -> tuple[Job, ...]:
    """Return all jobs in the order of their start: seed by seed, shared experts first.

    Raises a ValueError if the methods are not comparable.
    """
    configs = {name: _config(study, name) for name in study.methods}
    columns = {name: _columns(name, study.methods[name], configs[name]) for name in configs}
    _check_budgets(study, {name: build_plan(config) for name, config in configs.items()})
    _check_problems(configs)
    _check_columns(columns)
    base = next(iter(configs.values())).model_copy(update={"output_dir": root / BASE})
    jobs = [Job(BASE, study.seeds[0], base, columns={BASE: BASE})]
    shared = share_experts(configs)
    runs = {**shared.hidden, **configs}
    leaders_first = sorted(runs, key=lambda name: name not in shared.milestones)
    for seed in study.seeds:
        for name in leaders_first:
            milestones = {"milestones": shared.milestones.get(name, ())}
            update = {
                "seed": seed,
                "output_dir": root / "runs" / name / f"seed_{seed}",
                "checkpoint": runs[name].checkpoint.model_copy(update=milestones),
            }
            config = runs[name].model_copy(update=update)
            merges = study.methods[name].merges if name in study.methods else {}
            start = shared.starts.get(name)
            jobs.append(Job(name, seed, config, start, merges, columns.get(name, {})))
    return tuple(jobs)


def find_job(jobs: Sequence[Job], method: str, seed: int) -> Job:
    """Return the job of a method and seed."""
    return next(job for job in jobs if (job.method, job.seed) == (method, seed))


def expert_columns(study: Study, jobs: Sequence[Job]) -> dict[str, str]:
    """Return the column of each domain's expert, from the first method that trains experts."""
    for job in jobs:
        if job.method in study.methods and isinstance(job.config.recipe, ExpertsConfig):
            branches = job.config.branches.items()
            if found := {d: job.columns[b] for b, d in branches if b in job.columns}:
                return found
    return {}


def total_branch_steps(plan: Plan) -> int:
    """Return the updates of all branches together, which is the paper's budget."""
    return sum(stage.steps * len(stage.trained) for stage in plan.stages)


def evaluation_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide how, and on which problems, a model is evaluated."""
    evaluation = config.evaluation.model_dump(
        include={"split", "num_problems", "num_samples", "temperature"}
    )
    limit = config.evaluation.max_completion_tokens or config.rollout.max_completion_tokens
    domains = config.domains.items()
    return {
        "model.path": config.model.path,
        **{f"evaluation.{key}": value for key, value in evaluation.items()},
        "evaluation.max_completion_tokens": limit,
        "domains": {n: d.model_dump(mode="json", exclude={"num_train"}) for n, d in domains},
    }


def merge_model(merge: str) -> str:
    """Return the name of a further merge among the evaluated models; no branch can have it."""
    return f"merge {merge}"


def merge_config(config: Config, method: str, merge: MergeConfig) -> Config:
    """Return the configuration of a run that would end with this merge of the same branches."""
    if not isinstance(config.recipe, ExpertsConfig | CoPDConfig):
        raise ValueError(
            f"methods.{method}.merges needs a recipe with branches to merge: got "
            f"{config.recipe.type!r}, expected 'experts' or 'copd'. Remove it."
        )
    recipe = config.recipe.model_copy(update={"merge": merge})
    recipe.check(config.branches, config.domains)
    return config.model_copy(update={"recipe": recipe})


def _config(study: Study, method: str) -> Config:
    """Return a method's configuration; branches are evaluated only if set, the base never."""
    study.config(method, {})  # reports a section that is not a table
    settings = study.settings(method)
    extra = {
        "max_tokens": None if study.methods[method].budget == "own" else study.tokens,
        "seed": study.seeds[0],
        "evaluation": {"branches": False, **settings.get("evaluation", {}), "base": False},
        "engine": {"num_threads": 1, **settings.get("engine", {})},
    }
    return study.config(method, extra)


def _columns(name: str, method: MethodConfig, config: Config) -> dict[str, str]:
    """Return the models that a method is evaluated by, with their columns."""
    plan, label = build_plan(config), method.label or name
    if plan.final is None:  # every branch is a result
        prefix = "expert" if label == "experts" else label
        columns = {branch: f"{prefix} {branch}" for branch in plan.branches}
    else:
        columns = {plan.final: label}
        if config.evaluation.branches:
            others = [branch for branch in plan.branches if branch != plan.final]
            columns |= {branch: f"{label}: branch {branch}" for branch in others}
    for merge in method.merges.values():
        merge_config(config, name, merge)  # checks it
    return columns | {merge_model(merge): f"{label}: {merge}" for merge in method.merges}


def _check_budgets(study: Study, plans: Mapping[str, Plan]) -> None:
    """Refuse unequal branch steps; shared experts count for each method that needs them."""
    steps = {
        name: total_branch_steps(plan)
        for name, plan in plans.items()
        if study.methods[name].budget == "equal"
    }
    if study.equal == "branch_steps" and len(set(steps.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in steps.items())
        raise ValueError(
            f"all methods must have the same total of branch steps: got {counts}. Change the "
            'recipes\' steps, or set methods.NAME.budget = "own" for a method out of competition.'
        )


def _check_problems(configs: Mapping[str, Config]) -> None:
    """Refuse methods that would be evaluated differently."""
    (first, config), *others = configs.items()
    expected = evaluation_settings(config)
    for name, other in others:
        found = evaluation_settings(other)
        for key, value in expected.items():
            if found[key] != value:
                raise ValueError(
                    f"all methods must be measured alike: got {key} = {found[key]!r} for {name!r} "
                    f"and {value!r} for {first!r}. Set it in common, or make two studies."
                )


def _check_columns(columns: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse two columns of one name."""
    owners: dict[str, str] = {"base": "the base"}
    for method, own in columns.items():
        for column in own.values():
            if column in owners:
                raise ValueError(
                    f"every column must have a name of its own: got {column!r} from "
                    f"{owners[column]!r} and {method!r}. Change methods.{method}.label."
                )
            owners[column] = method

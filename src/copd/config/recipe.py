"""Which method to run, as configuration: recipes and merges. Builds no plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.names import BASE, check_complete, check_known, listed
from copd.config.pilot import PilotConfig
from copd.config.sections import (
    Count,
    Fraction,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Section,
)


class NoMerge(Section):
    """Every branch is a result under its own name."""

    type: Literal["none"] = "none"
    """Nothing is merged."""


class SelectMerge(Section):
    """One branch alone is the result, for instance the hub."""

    type: Literal["select"] = "select"
    """Nothing is merged, one branch is chosen."""
    branch: str
    """The branch that becomes the final model."""


class UniformMerge(Section):
    """The plain average of the branches (paper: "simple parameter merging")."""

    type: Literal["uniform"] = "uniform"
    """Every branch counts the same."""


class WeightedMerge(Section):
    """A weighted average of the branches."""

    type: Literal["weighted"] = "weighted"
    """You choose how much each branch counts."""
    weights: dict[str, NonNegativeFloat]
    """One weight per branch; only their proportions matter."""

    @model_validator(mode="after")
    def _check(self) -> WeightedMerge:
        if not sum(self.weights.values()) > 0:
            raise ValueError(
                f"merge.weights must have a positive sum: got {self.weights}. "
                "Give at least one branch a weight above 0."
            )
        return self


class TaskArithmeticMerge(Section):
    """theta_0 + scale * mean_k (theta_k - theta_0) (2212.04089, whose lambda is scale / K)."""

    type: Literal["task_arithmetic"] = "task_arithmetic"
    """The mean change of the branches is scaled."""
    scale: PositiveFloat = 1.0
    """Factor on the mean change: 1 is the average, K the sum."""


class TiesMerge(Section):
    """Trim small changes, elect a sign per parameter, average those that agree (2306.01708)."""

    type: Literal["ties"] = "ties"
    """Conflicting signs are resolved before averaging."""
    density: Fraction = 0.2
    """Share of each branch's changes kept, the largest ones."""
    scale: PositiveFloat = 1.0
    """Factor on the merged change."""


class DareMerge(Section):
    """Drop changes at random, divide the rest by density, average them (2311.03099)."""

    type: Literal["dare"] = "dare"
    """Redundant changes are dropped before averaging."""
    density: Fraction = 0.5
    """Share of each branch's changes kept."""
    scale: PositiveFloat = 1.0
    """Factor on the mean change."""
    seed: NonNegativeInt = 0
    """Decides which changes are dropped."""


class ValidationMerge(Section):
    """A weighted average whose weights score best on validation problems."""

    type: Literal["validation"] = "validation"
    """The weights are searched for."""
    grid: Count = 4
    """Weights tried are all multiples of 1 / grid that sum to 1."""


MergeConfig = Annotated[
    NoMerge
    | SelectMerge
    | UniformMerge
    | WeightedMerge
    | TaskArithmeticMerge
    | TiesMerge
    | DareMerge
    | ValidationMerge,
    Field(discriminator="type"),
]


class ExpertsConfig(Section):
    """RLVR of one expert per domain, each on its own."""

    type: Literal["experts"] = "experts"
    """Domain experts; merged, the average of independent experts."""
    branches: dict[Name, str] = Field(default={})
    """Branch to its domain; empty means one branch per domain, named like it."""
    steps: Count
    """Updates of each expert."""
    merge: MergeConfig = NoMerge()
    """What becomes of the experts; by default each is a result."""

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        _check_branches(self.branches, domains)
        _check_merge(self.merge, branches)


class MixedConfig(Section):
    """Mixed RLVR: one model learns from all domains in every step."""

    type: Literal["mixed"] = "mixed"
    """The baseline without experts."""
    domains: tuple[str, ...] = ()
    """Domains in the mix, one batch of each per step; empty means all."""
    steps: Count
    """Updates of the one model."""

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        for domain in self.domains:
            check_known("recipe.domains", domain, domains, "domain")
        if len(set(self.domains)) < len(self.domains):
            raise ValueError(
                f"recipe.domains must name each domain once: got {listed(self.domains)}. "
                "Remove the repetition; every domain has one batch per step."
            )


class OPDConfig(Section):
    """Static on-policy distillation: train experts, then one teaches the other."""

    type: Literal["opd"] = "opd"
    """The two-step pipeline with a frozen teacher; the other direction is another config."""
    student: str
    """The expert that learns from the teacher, or "base" for a fresh copy of the base model."""
    teacher: str
    """The expert that teaches on its own domain; experts are named like their domains."""
    expert_steps: Count
    """Updates of each expert that takes part."""
    opd_steps: Count
    """Updates of the student while it distils."""
    beta: PositiveFloat = 1.0
    """Factor on the distillation signal (not given in the paper)."""

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        if self.student == self.teacher:
            raise ValueError(
                f"opd needs a teacher other than the student: got {self.student!r} twice. "
                "Name another branch in recipe.teacher."
            )
        check_known("recipe.teacher", self.teacher, domains, "domain whose expert teaches")
        check_known("recipe.student", self.student, [*domains, BASE], "domain or the base")


class MOPDConfig(Section):
    """Multi-teacher OPD: train all experts, then all teach one fresh copy of the base model."""

    type: Literal["mopd"] = "mopd"
    """The many-teacher pipeline with frozen teachers."""
    expert_steps: Count
    """Updates of each expert."""
    opd_steps: Count
    """Updates of the student; each has one batch per teacher."""
    beta: PositiveFloat = 1.0
    """Factor on the distillation signal (not given in the paper)."""

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        if len(domains) < 2:
            raise ValueError(
                f"mopd needs at least two teachers: got only the domain {listed(domains)}. Add a "
                'domain, or use recipe.type = "opd" with student = "base" for one teacher.'
            )


class CoPDConfig(Section):
    """Co-evolving policy distillation: branches alternate RLVR and mutual OPD, then merge."""

    type: Literal["copd"] = "copd"
    """The paper's method."""
    branches: dict[Name, str] = Field(default={})
    """Branch to its domain; empty means one branch per domain, named like it."""
    topology: Literal["pair", "all", "hub"] = "all"
    """Who learns from whom: two branches, everyone from everyone, or hub and spokes."""
    hub: str | None = None
    """The branch in the middle of topology "hub" (paper, three branches: text)."""
    rounds: Count
    """N, each one RLVR stage and one mutual stage."""
    rlvr_steps: Count = 15
    """S_RL, updates per RLVR stage (paper: S_RL to S_OPD as 3 to 2)."""
    opd_steps: Count = 10
    """S_OPD, updates per mutual stage."""
    beta: NonNegativeFloat | dict[str, NonNegativeFloat] = 1.0
    """Factor on the distillation signal, also per student; 0 for a student that is not taught."""
    merge: MergeConfig = UniformMerge()
    """How the branches become one model."""

    def betas(self, branches: Mapping[str, str]) -> Mapping[str, float]:
        """beta_k of every student."""
        return self.beta if isinstance(self.beta, dict) else dict.fromkeys(branches, self.beta)

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        _check_branches(self.branches, domains)
        if len(branches) < 2:
            raise ValueError(
                f"copd needs at least two branches: got only {listed(branches)}. "
                'Add a domain, or train it alone with recipe.type = "experts".'
            )
        self._check_topology(branches)
        betas = self.betas(branches)
        check_complete("recipe.beta", betas, branches)
        if not any(betas.values()):
            raise ValueError(
                "recipe.beta must be above 0 for at least one student: got 0 for all, so nobody "
                'would learn from anybody. Raise it, or use recipe.type = "experts".'
            )
        _check_merge(self.merge, branches)

    def _check_topology(self, branches: Mapping[str, str]) -> None:
        if self.topology == "pair" and len(branches) != 2:
            raise ValueError(
                f'recipe.topology = "pair" needs exactly two branches: got {listed(branches)}. '
                'Use "all", or "hub" with recipe.hub.'
            )
        if self.topology == "hub" and self.hub is None:
            raise ValueError(
                'recipe.topology = "hub" needs recipe.hub: got none, known branches are '
                f"{listed(branches)}. Set recipe.hub to the branch in the middle."
            )
        if self.topology == "hub":
            check_known("recipe.hub", str(self.hub), branches, "branch")
        elif self.hub is not None:
            raise ValueError(
                f'recipe.hub needs recipe.topology = "hub": got topology {self.topology!r} and hub '
                f'{self.hub!r}. Set recipe.topology = "hub", or remove recipe.hub.'
            )


RecipeConfig = Annotated[
    ExpertsConfig | MixedConfig | OPDConfig | MOPDConfig | CoPDConfig | PilotConfig,
    Field(discriminator="type"),
]


def _check_branches(branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
    for branch, domain in branches.items():
        check_known(f"recipe.branches.{branch}", domain, domains, "domain")


def _check_merge(merge: MergeConfig, branches: Mapping[str, str]) -> None:
    if isinstance(merge, NoMerge):
        return
    if isinstance(merge, SelectMerge):
        check_known("recipe.merge.branch", merge.branch, branches, "branch")
    elif len(branches) < 2:
        raise ValueError(
            f"recipe.merge needs at least two branches: got only {listed(branches)}. "
            'Add a branch, or set recipe.merge.type = "none".'
        )
    if isinstance(merge, WeightedMerge):
        check_complete("recipe.merge.weights", merge.weights, branches)

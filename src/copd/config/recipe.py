"""Which method to run, as configuration: the recipes. Builds no plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.merge import MergeConfig, NoMerge, UniformMerge, check_merge
from copd.config.names import BASE, TRUNK, check_complete, check_known, listed
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
        check_merge(self.merge, branches)


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


class BandConfig(Section):
    """Teachers speak from where branches have drifted apart to where they are alike again."""

    low: Fraction
    """Mean top-k overlap of students with their teachers at which cross batches begin."""
    high: Fraction
    """The overlap at which they end, until it is `low` again."""

    @model_validator(mode="after")
    def _check(self) -> BandConfig:
        if self.low >= self.high:
            raise ValueError(
                f"recipe.band.low must be below recipe.band.high: got {self.low} and {self.high}. "
                "Give them some distance, such as 0.88 and 0.92."
            )
        return self


class CoPDConfig(Section):
    """Co-evolving policy distillation: branches alternate RLVR and mutual OPD, then merge."""

    type: Literal["copd"] = "copd"
    """The paper's method."""
    branches: dict[Name, str] = Field(default={})
    """Branch to its domain; empty means one branch per domain, named like it."""
    topology: Literal["pair", "all", "hub", "trunk"] = "all"
    """Who learns from whom: two branches, everyone from everyone, hub and spokes, or spokes around
    a further branch, "trunk", that trains on all domains."""
    hub: str | None = None
    """The branch in the middle of topology "hub" (paper, three branches: text)."""
    rounds: Count
    """N, each one RLVR stage and one mutual stage."""
    rlvr_steps: Count = 15
    """S_RL, updates per RLVR stage (paper: S_RL to S_OPD as 3 to 2)."""
    opd_steps: Count = 10
    """S_OPD, updates per mutual stage."""
    band: BandConfig | None = None
    """The overlap decides which of the N * (S_RL + S_OPD) steps are mutual; needs monitor.every."""
    beta: NonNegativeFloat | dict[str, NonNegativeFloat] = 1.0
    """Factor on the distillation signal, also per student; 0 for a student that is not taught."""
    max_staleness: NonNegativeInt = 0
    """Steps that teachers may be old when they are asked: so many later steps of a mutual stage ask
    the same copy of their weights (paper: 0)."""
    merge: MergeConfig = UniformMerge()
    """How the branches become one model."""

    def names(self, branches: Collection[str]) -> tuple[str, ...]:
        """All branches of the plan: one per expert, and the trunk where there is one."""
        return (*branches, TRUNK) if self.topology == "trunk" else tuple(branches)

    def betas(self, branches: Collection[str]) -> Mapping[str, float]:
        """beta_k of every student."""
        names = self.names(branches)
        return self.beta if isinstance(self.beta, dict) else dict.fromkeys(names, self.beta)

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        _check_branches(self.branches, domains)
        if len(branches) < 2:
            raise ValueError(
                f"copd needs at least two branches: got only {listed(branches)}. "
                'Add a domain, or train it alone with recipe.type = "experts".'
            )
        self._check_topology(branches)
        betas = self.betas(branches)
        check_complete("recipe.beta", betas, self.names(branches))
        if not any(betas.values()):
            raise ValueError(
                "recipe.beta must be above 0 for at least one student: got 0 for all, so nobody "
                'would learn from anybody. Raise it, or use recipe.type = "experts".'
            )
        check_merge(self.merge, self.names(branches))

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
        if self.topology == "trunk" and TRUNK in branches:
            raise ValueError(
                f'recipe.topology = "trunk" adds a branch named {TRUNK!r}: got a branch of that '
                "name already. Rename it, or the domain it is named after."
            )


RecipeConfig = Annotated[
    ExpertsConfig | MixedConfig | OPDConfig | MOPDConfig | CoPDConfig | PilotConfig,
    Field(discriminator="type"),
]


def _check_branches(branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
    for branch, domain in branches.items():
        check_known(f"recipe.branches.{branch}", domain, domains, "domain")

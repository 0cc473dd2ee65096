"""Settings of the recipes, one class per method, with their checks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.merge import MergeConfig, NoMerge, UniformMerge, check_merge
from copd.config.names import BASE, TRUNK, check_complete, check_known, listed
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
    """RLVR of one expert per domain, independent of each other."""

    type: Literal["experts"] = "experts"
    branches: dict[Name, str] = Field(default={})
    """Domain of each branch; empty means one branch per domain, with its name."""
    steps: Count
    """Updates of each expert."""
    merge: MergeConfig = NoMerge()

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        _check_branches(self.branches, domains)
        check_merge(self.merge, branches)


class MixedConfig(Section):
    """Mixed RLVR: one model learns all domains in each step."""

    type: Literal["mixed"] = "mixed"
    domains: tuple[str, ...] = ()
    """Domains to mix, one batch of each per step; empty means all."""
    steps: Count
    """Updates of the model."""

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        for domain in self.domains:
            check_known("recipe.domains", domain, domains, "domain")
        if len(set(self.domains)) < len(self.domains):
            raise ValueError(
                f"recipe.domains must name each domain once: got {listed(self.domains)}. "
                "Remove the repetition; every domain has one batch per step."
            )


class OPDConfig(Section):
    """Static on-policy distillation: train the experts, then distil one into the other."""

    type: Literal["opd"] = "opd"
    student: str
    """The expert that learns, or "base" for a fresh copy of the base model."""
    teacher: str
    """The expert that teaches its domain, frozen; experts have the names of their domains."""
    expert_steps: Count
    """Updates of each expert that takes part."""
    opd_steps: Count
    """Updates of the student by distillation."""
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
    """Multi-teacher OPD: train all experts, then distil all into a fresh copy of the base."""

    type: Literal["mopd"] = "mopd"
    expert_steps: Count
    """Updates of each expert."""
    opd_steps: Count
    """Updates of the student, each on one batch per teacher."""
    beta: PositiveFloat = 1.0
    """Factor on the distillation signal (not given in the paper)."""

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        if len(domains) < 2:
            raise ValueError(
                f"mopd needs at least two teachers: got only the domain {listed(domains)}. Add a "
                'domain, or use recipe.type = "opd" with student = "base" for one teacher.'
            )


class BandConfig(Section):
    """Distil while the overlap is low instead of in fixed stages; needs monitor.every."""

    low: Fraction
    """Mean overlap of students with their teachers at which cross batches start."""
    high: Fraction
    """Mean overlap at which cross batches stop, until it is down to `low` again."""

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
    branches: dict[Name, str] = Field(default={})
    """Domain of each branch; empty means one branch per domain, with its name."""
    topology: Literal["pair", "all", "hub", "trunk"] = "all"
    """Who learns from whom: "pair", two branches; "all", each from all others; "hub", all from the
    hub and the hub from all; "trunk", the same around a branch that trains on all domains."""
    hub: str | None = None
    """The hub of topology "hub" (paper, with three branches: text)."""
    rounds: Count
    """N, rounds of one RLVR stage and one mutual stage."""
    rlvr_steps: Count = 15
    """S_RL, updates per RLVR stage (paper: S_RL : S_OPD = 3 : 2)."""
    opd_steps: Count = 10
    """S_OPD, updates per mutual stage."""
    band: BandConfig | None = None
    """Let the overlap decide which of the N * (S_RL + S_OPD) steps are mutual."""
    beta: NonNegativeFloat | dict[str, NonNegativeFloat] = 1.0
    """Factor on the distillation signal, or a table per student; 0 turns off its cross batches."""
    max_staleness: NonNegativeInt = 0
    """Steps that a teacher's weights may be old: so many further steps of a mutual stage score with
    the same snapshot (paper: 0)."""
    merge: MergeConfig = UniformMerge()

    def names(self, branches: Collection[str]) -> tuple[str, ...]:
        """Return all branches of the plan, the trunk included."""
        return (*branches, TRUNK) if self.topology == "trunk" else tuple(branches)

    def betas(self, branches: Collection[str]) -> Mapping[str, float]:
        """Return beta_k of each student."""
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
                "recipe.beta must be above 0 for at least one student: got 0 for all, so no branch "
                'would learn from another. Raise it, or use recipe.type = "experts".'
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


class PilotConfig(Section):
    """The paper's pilot study: distil one teacher into students of different overlap with it."""

    type: Literal["pilot"] = "pilot"
    domain: str
    """Domain of the teacher and the students (paper: image)."""
    temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=3)]
    """Temperatures of the RLVR of the students, one student each (not given in the paper)."""
    expert_steps: Count
    """Updates of the teacher by RLVR."""
    student_steps: Count
    """Updates of each student by RLVR, before distillation."""
    opd_steps: Count
    """Updates of each student by distillation."""
    beta: PositiveFloat = 1.0
    """Factor on the distillation signal (not given in the paper)."""

    @model_validator(mode="after")
    def _check(self) -> PilotConfig:
        if len(set(self.students)) < len(self.temperatures):
            raise ValueError(
                "recipe.temperatures must differ by 0.01 or more: got "
                f"{list(self.temperatures)}. Remove one, or move it."
            )
        return self

    @property
    def students(self) -> tuple[str, ...]:
        """The branches of the students, named after their temperatures in percent."""
        return tuple(f"student_{100 * t:.0f}" for t in self.temperatures)

    @property
    def opd_start(self) -> int:
        """Steps of the plan before distillation starts."""
        return self.expert_steps + self.student_steps

    def check_measured(self, section: str, every: int) -> None:
        """Refuse a run that does not measure the students just before distillation."""
        if not every or self.opd_start % every:
            raise ValueError(
                f"{section}.every must divide recipe.expert_steps + recipe.student_steps = "
                f"{self.opd_start}, where distillation starts: got {every}. "
                f"Set it to {self.opd_start}."
            )

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        check_known("recipe.domain", self.domain, domains, "domain")


RecipeConfig = Annotated[
    ExpertsConfig | MixedConfig | OPDConfig | MOPDConfig | CoPDConfig | PilotConfig,
    Field(discriminator="type"),
]


def _check_branches(branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
    for branch, domain in branches.items():
        check_known(f"recipe.branches.{branch}", domain, domains, "domain")

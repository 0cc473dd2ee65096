"""The paper's pilot study as a recipe: what OPD gains from, measured. Builds no plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.names import check_known
from copd.config.sections import Count, PositiveFloat, Section


class PilotConfig(Section):
    """One teacher, and students of different overlap with it that all get the same distillation."""

    type: Literal["pilot"] = "pilot"
    """Does OPD gain more from a teacher that behaves alike?"""
    domain: str
    """What the teacher knows and the students learn (paper: image)."""
    temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=3)]
    """A student for each: the temperature it samples at in its own short RLVR (not given in the
    paper)."""
    expert_steps: Count
    """Updates of the teacher, RLVR on the domain."""
    student_steps: Count
    """Updates of each student before it is taught, RLVR on the domain."""
    opd_steps: Count
    """Updates of each student while it is taught."""
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
        """The students' branches, named after their temperatures in percent."""
        return tuple(f"student_{100 * t:.0f}" for t in self.temperatures)

    @property
    def taught_from(self) -> int:
        """Steps of the plan after which the students begin to be taught."""
        return self.expert_steps + self.student_steps

    def check_measured(self, section: str, every: int) -> None:
        """Refuse a run that would not measure the students just before they are taught."""
        if not every or self.taught_from % every:
            raise ValueError(
                f"{section}.every must divide recipe.expert_steps + recipe.student_steps = "
                f"{self.taught_from}, where the students begin to be taught: got {every}. "
                f"Set it to {self.taught_from}."
            )

    def check(self, branches: Mapping[str, str], domains: Mapping[str, object]) -> None:
        check_known("recipe.domain", self.domain, domains, "domain")

"""Static OPD: train experts, then one teaches the other. Knows plans, not training."""

from __future__ import annotations

from collections.abc import Mapping

from copd.config import BASE, STUDENT, OPDConfig
from copd.recipes.plan import OPD, RLVR, Plan, Stage


def opd(branches: Mapping[str, str], config: OPDConfig) -> Plan:
    """Experts of both sides first; then OPD(student, teacher, D_teacher), the teacher frozen.

    Only the experts that take part are trained. With student "base" that is the teacher alone, and
    the student is a branch that no action trains before the second stage: a fresh copy.
    """
    experts = [name for name in branches if name in (config.student, config.teacher)]
    student = STUDENT if config.student == BASE else config.student
    native = tuple(RLVR(name, branches[name]) for name in experts)
    cross = OPD(student, config.teacher, branches[config.teacher], config.beta)
    stages = (
        Stage("experts", config.expert_steps, native),
        Stage("opd", config.opd_steps, (cross,)),
    )
    return Plan(tuple(dict.fromkeys([*experts, student])), stages, result=student)

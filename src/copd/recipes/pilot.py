"""The paper's pilot study: students of different overlap with one teacher. Knows plans only."""

from __future__ import annotations

from copd.config import EXPERT, PilotConfig
from copd.recipes.plan import OPD, RLVR, Plan, Stage


def pilot(config: PilotConfig) -> Plan:
    """RLVR(expert, D); then RLVR(s, D) of each student s at a temperature of its own; then
    OPD(s, expert, D) of each, the expert frozen.
    """
    students = tuple(zip(config.students, config.temperatures, strict=True))
    taught = tuple(OPD(name, EXPERT, config.domain, config.beta) for name, _ in students)
    trained = tuple(RLVR(name, config.domain, temperature) for name, temperature in students)
    stages = (
        Stage("expert", config.expert_steps, (RLVR(EXPERT, config.domain),)),
        Stage("students", config.student_steps, trained),
        Stage("opd", config.opd_steps, taught),
    )
    return Plan((EXPERT, *config.students), stages)

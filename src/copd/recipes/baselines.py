"""The recipes that copd is compared with: experts, mixed RLVR, OPD, MOPD, and the paper's pilot."""

from collections.abc import Iterable, Mapping

from copd.config import (
    BASE,
    EXPERT,
    STUDENT,
    UNIFIED,
    ExpertsConfig,
    MixedConfig,
    MOPDConfig,
    OPDConfig,
    PilotConfig,
)
from copd.recipes.plan import OPD, RLVR, Plan, Stage, finish


def experts(branches: Mapping[str, str], config: ExpertsConfig) -> Plan:
    """Plan RLVR(k, D_k) for every branch k; `branches` maps branches to domains."""
    native = tuple(RLVR(branch, domain) for branch, domain in branches.items())
    return finish(tuple(branches), (Stage("experts", config.steps, native),), config.merge)


def mixed(domains: Iterable[str], config: MixedConfig) -> Plan:
    """Plan RLVR(unified, D_1), ..., RLVR(unified, D_K): K batches and one update per step."""
    native = tuple(RLVR(UNIFIED, domain) for domain in config.domains or domains)
    return Plan((UNIFIED,), (Stage("mixed", config.steps, native),), result=UNIFIED)


def opd(branches: Mapping[str, str], config: OPDConfig) -> Plan:
    """Plan RLVR of the experts that take part, then OPD(student, teacher, D_teacher).

    With student "base" only the teacher is an expert, and the student is a branch that no action
    trains before the second stage: a fresh copy of the base.
    """
    names = [name for name in branches if name in (config.student, config.teacher)]
    student = STUDENT if config.student == BASE else config.student
    native = tuple(RLVR(name, branches[name]) for name in names)
    cross = OPD(student, config.teacher, branches[config.teacher], config.beta)
    stages = (
        Stage("experts", config.expert_steps, native),
        Stage("opd", config.opd_steps, (cross,)),
    )
    return Plan(tuple(dict.fromkeys([*names, student])), stages, result=student)


def mopd(branches: Mapping[str, str], config: MOPDConfig) -> Plan:
    """Plan RLVR(k, D_k) for every k, then OPD(unified, k, D_k) for every k.

    No action trains `unified` in the first stage, so it starts the second as the base.
    """
    native = tuple(RLVR(name, domain) for name, domain in branches.items())
    cross = tuple(OPD(UNIFIED, name, domain, config.beta) for name, domain in branches.items())
    stages = (
        Stage("experts", config.expert_steps, native),
        Stage("opd", config.opd_steps, cross),
    )
    return Plan((*branches, UNIFIED), stages, result=UNIFIED)


def pilot(config: PilotConfig) -> Plan:
    """Plan RLVR(expert, D), then RLVR(s, D) and at last OPD(s, expert, D) for every student s.

    Each student is trained by RLVR at a temperature of its own.
    """
    students = tuple(zip(config.students, config.temperatures, strict=True))
    native = tuple(RLVR(name, config.domain, temperature) for name, temperature in students)
    cross = tuple(OPD(name, EXPERT, config.domain, config.beta) for name, _ in students)
    stages = (
        Stage("expert", config.expert_steps, (RLVR(EXPERT, config.domain),)),
        Stage("students", config.student_steps, native),
        Stage("opd", config.opd_steps, cross),
    )
    return Plan((EXPERT, *config.students), stages)

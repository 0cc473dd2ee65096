"""Multi-teacher OPD: train experts, then all teach one fresh copy. Knows plans, not training."""

from __future__ import annotations

from collections.abc import Mapping

from copd.config import UNIFIED, MOPDConfig
from copd.recipes.plan import OPD, RLVR, Plan, Stage


def mopd(branches: Mapping[str, str], config: MOPDConfig) -> Plan:
    """RLVR(k, D_k) for every k; then OPD(unified, k, D_k) for every k, the experts frozen.

    No action trains `unified` in the first stage, so it starts the second as the base model.
    """
    native = tuple(RLVR(name, domain) for name, domain in branches.items())
    cross = tuple(OPD(UNIFIED, name, domain, config.beta) for name, domain in branches.items())
    stages = (
        Stage("experts", config.expert_steps, native),
        Stage("opd", config.opd_steps, cross),
    )
    return Plan((*branches, UNIFIED), stages, result=UNIFIED)

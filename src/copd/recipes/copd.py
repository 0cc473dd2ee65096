"""Co-evolving policy distillation (arXiv 2604.27083, Algorithm 1). Knows plans, not training."""

from __future__ import annotations

from collections.abc import Mapping

from copd.config import CoPDConfig
from copd.recipes.plan import OPD, RLVR, Plan, Stage, finish


def copd(branches: Mapping[str, str], config: CoPDConfig) -> Plan:
    """N rounds of RLVR stages and mutual stages, then the merge; `branches` maps to domains.

    In the mutual stage a branch k has its native RLVR(k, D_k) and, for each neighbour j, the cross
    OPD(k, j, D_j); they make one update together. A student with beta 0 has no cross batches.
    """
    native = tuple(RLVR(name, domain) for name, domain in branches.items())
    betas = config.betas(branches)
    cross = tuple(
        OPD(student, teacher, branches[teacher], betas[student])
        for student, teacher in edges(tuple(branches), config.hub)
        if betas[student] > 0
    )
    stages = (
        Stage("rlvr", config.rlvr_steps, native),
        Stage("mutual", config.opd_steps, native + cross),
    )
    return finish(tuple(branches), stages * config.rounds, config.merge)


def edges(branches: tuple[str, ...], hub: str | None) -> list[tuple[str, str]]:
    """(student, teacher): every ordered pair, or with a hub those that include the hub."""
    pairs = [(s, t) for s in branches for t in branches if s != t]
    return [pair for pair in pairs if hub is None or hub in pair]

"""Co-evolving policy distillation (arXiv 2604.27083, Algorithm 1). Knows plans, not training."""

from __future__ import annotations

from collections.abc import Mapping

from copd.config import TRUNK, CoPDConfig
from copd.recipes.plan import OPD, RLVR, Plan, Stage, finish


def copd(branches: Mapping[str, str], config: CoPDConfig) -> Plan:
    """N rounds of RLVR stages and mutual stages, then the merge; `branches` maps to domains.

    In the mutual stage a branch k has its native RLVR(k, D_k) and, for each neighbour j, the cross
    OPD(k, j, D_j); they make one update together. A student with beta 0 has no cross batches. A
    trunk is the hub of all, has RLVR(trunk, D_k) for every k, and teaches k all domains but D_k.
    With a band all rounds are one stage, in which the overlap decides when the teachers speak.
    """
    trains: dict[str, tuple[str, ...]] = {name: (domain,) for name, domain in branches.items()}
    hub = config.hub
    if config.topology == "trunk":
        trains[TRUNK] = tuple(dict.fromkeys(branches.values()))
        hub = TRUNK
    native = tuple(RLVR(name, domain) for name, own in trains.items() for domain in own)
    betas = config.betas(branches)
    cross = tuple(
        OPD(student, teacher, domain, betas[student])
        for student, teacher in edges(tuple(trains), hub)
        for domain in trains[teacher]
        if betas[student] > 0 and not (teacher == TRUNK and domain in trains[student])
    )
    if config.band:
        steps = config.rounds * (config.rlvr_steps + config.opd_steps)
        apply_band = Stage("mutual", steps, native + cross, config.band, config.max_staleness)
        return finish(tuple(trains), (apply_band,), config.merge)
    stages = (
        Stage("rlvr", config.rlvr_steps, native),
        Stage("mutual", config.opd_steps, native + cross, max_staleness=config.max_staleness),
    )
    return finish(tuple(trains), stages * config.rounds, config.merge)


def edges(branches: tuple[str, ...], hub: str | None) -> list[tuple[str, str]]:
    """(student, teacher): every ordered pair, or with a hub those that include the hub."""
    pairs = [(s, t) for s in branches for t in branches if s != t]
    return [pair for pair in pairs if hub is None or hub in pair]

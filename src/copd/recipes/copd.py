"""Co-evolving policy distillation (arXiv 2604.27083, Algorithm 1)."""

from collections.abc import Mapping
from dataclasses import replace

from copd.config import TRUNK, CoPDConfig
from copd.recipes.plan import OPD, RLVR, Plan, Stage, finish


def copd(branches: Mapping[str, str], config: CoPDConfig) -> Plan:
    """Plan N rounds of an RLVR stage and a mutual stage, then the merge.

    In a mutual stage, one update of branch k has its native batch RLVR(k, D_k) and for each
    neighbour j the cross batch OPD(k, j, D_j), if beta_k is above 0. With topology "trunk", the
    trunk is the hub, has RLVR(trunk, D_k) for every k, and teaches k all domains but D_k. With a
    band all rounds are one stage, and the measured overlap decides which of its steps are mutual.
    `branches` maps branches to domains.
    """
    domains_of: dict[str, tuple[str, ...]] = {name: (own,) for name, own in branches.items()}
    hub = config.hub
    if config.topology == "trunk":
        domains_of[TRUNK] = tuple(dict.fromkeys(branches.values()))
        hub = TRUNK
    native = tuple(RLVR(name, domain) for name, own in domains_of.items() for domain in own)
    betas = config.betas(branches)
    cross = tuple(
        OPD(student, teacher, domain, betas[student])
        for student, teacher in edges(tuple(domains_of), hub)
        for domain in domains_of[teacher]
        if betas[student] > 0 and not (teacher == TRUNK and domain in domains_of[student])
    )
    mutual = Stage("mutual", config.opd_steps, native + cross, max_staleness=config.max_staleness)
    stages = (Stage("rlvr", config.rlvr_steps, native), mutual) * config.rounds
    if config.band:
        steps = config.rounds * (config.rlvr_steps + config.opd_steps)
        stages = (replace(mutual, steps=steps, band=config.band),)
    return finish(tuple(domains_of), stages, config.merge)


def edges(branches: tuple[str, ...], hub: str | None) -> list[tuple[str, str]]:
    """Return the pairs (student, teacher): all ordered pairs, or only those with the hub."""
    pairs = [(s, t) for s in branches for t in branches if s != t]
    return [pair for pair in pairs if hub is None or hub in pair]

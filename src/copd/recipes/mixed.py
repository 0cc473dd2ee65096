"""Mixed RLVR: one model, rewards of all domains in every step. Knows plans, not training."""

from __future__ import annotations

from collections.abc import Iterable

from copd.config import UNIFIED, MixedConfig
from copd.recipes.plan import RLVR, Plan, Stage


def mixed(domains: Iterable[str], config: MixedConfig) -> Plan:
    """RLVR(unified, D_1), ..., RLVR(unified, D_K): K batches and one update per step."""
    actions = tuple(RLVR(UNIFIED, domain) for domain in config.domains or domains)
    return Plan((UNIFIED,), (Stage("mixed", config.steps, actions),), result=UNIFIED)

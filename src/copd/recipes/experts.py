"""RLVR of one expert per domain, each on its own. Knows plans, not training."""

from __future__ import annotations

from collections.abc import Mapping

from copd.config import ExpertsConfig
from copd.recipes.plan import RLVR, Plan, Stage, finish


def experts(branches: Mapping[str, str], config: ExpertsConfig) -> Plan:
    """RLVR(k, D_k) for every branch k of `branches`, which maps it to its domain."""
    actions = tuple(RLVR(branch, domain) for branch, domain in branches.items())
    return finish(tuple(branches), (Stage("experts", config.steps, actions),), config.merge)

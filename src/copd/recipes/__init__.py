"""Recipes: from a configuration to a plan, as pure functions. Knows no torch and no model."""

from __future__ import annotations

from copd.config import (
    Config,
    CoPDConfig,
    ExpertsConfig,
    MixedConfig,
    MOPDConfig,
    OPDConfig,
    PilotConfig,
)
from copd.recipes.copd import copd
from copd.recipes.experts import experts
from copd.recipes.mixed import mixed
from copd.recipes.mopd import mopd
from copd.recipes.opd import opd
from copd.recipes.pilot import pilot
from copd.recipes.plan import OPD, RLVR, Action, Merge, Plan, Stage, to_dict

__all__ = [
    "OPD",
    "RLVR",
    "Action",
    "Merge",
    "Plan",
    "Stage",
    "build_plan",
    "to_dict",
]


def build_plan(config: Config) -> Plan:
    """The plan of the configured recipe."""
    match config.recipe:
        case ExpertsConfig() as recipe:
            return experts(config.branches, recipe)
        case MixedConfig() as recipe:
            return mixed(config.domains, recipe)
        case OPDConfig() as recipe:
            return opd(config.branches, recipe)
        case MOPDConfig() as recipe:
            return mopd(config.branches, recipe)
        case CoPDConfig() as recipe:
            return copd(config.branches, recipe)
        case PilotConfig() as recipe:
            return pilot(recipe)

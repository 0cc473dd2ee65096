"""Recipes: functions from a configuration to a plan of stages and actions."""

from copd.config import (
    Config,
    CoPDConfig,
    ExpertsConfig,
    MixedConfig,
    MOPDConfig,
    OPDConfig,
    PilotConfig,
)
from copd.recipes.baselines import experts, mixed, mopd, opd, pilot
from copd.recipes.copd import copd
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
    """Build the plan of the configured recipe.

    Args:
        config: The configuration of a run.

    Returns:
        The plan: branches, stages, and what becomes the final model.
    """
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

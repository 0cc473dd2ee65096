"""What a step takes on a cluster: arithmetic from sizes and rates. Runs nothing."""

from copd.recipes.cluster.machine import MACHINES, Machine
from copd.recipes.cluster.predict import Prediction, last_update, predict, verbs_of
from copd.recipes.cluster.table import describe_cluster
from copd.recipes.cluster.widths import QWEN3_VL_4B, Widths
from copd.recipes.cluster.work import Lengths, Load, Setup

__all__ = [
    "MACHINES",
    "QWEN3_VL_4B",
    "Lengths",
    "Load",
    "Machine",
    "Prediction",
    "Setup",
    "Widths",
    "describe_cluster",
    "last_update",
    "predict",
    "verbs_of",
]

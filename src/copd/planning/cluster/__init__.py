"""What a step takes on a cluster: arithmetic from sizes and rates. Runs nothing."""

from copd.planning.cluster.machine import MACHINES, Machine
from copd.planning.cluster.predict import Prediction, last_update, predict, seconds_by_method
from copd.planning.cluster.table import describe_cluster
from copd.planning.cluster.widths import QWEN3_VL_4B, Widths
from copd.planning.cluster.work import Lengths, Setup, Workload

__all__ = [
    "MACHINES",
    "QWEN3_VL_4B",
    "Lengths",
    "Machine",
    "Prediction",
    "Setup",
    "Widths",
    "Workload",
    "describe_cluster",
    "last_update",
    "predict",
    "seconds_by_method",
]

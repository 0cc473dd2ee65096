"""What a run costs and how much memory and time it needs, before anything is loaded."""

from copd.planning.report import Report, memory_report, parse_size
from copd.planning.workload import Expected, find_workloads

__all__ = ["Expected", "Report", "find_workloads", "memory_report", "parse_size"]

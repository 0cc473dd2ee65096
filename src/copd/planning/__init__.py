"""What a run costs and how much memory and time it needs, before anything is loaded."""

from copd.planning.report import Report, memory_report, parse_size
from copd.planning.workload import Expected

__all__ = ["Expected", "Report", "memory_report", "parse_size"]

"""How much memory a run will need: from its configuration and the shapes of its model, before
anything is loaded. Knows no torch."""

from copd.planning.report import Report, memory_report, parse_size

__all__ = ["Report", "memory_report", "parse_size"]

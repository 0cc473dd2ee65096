"""The report: what run directories hold, as one HTML page. Changes no run, loads no model."""

from copd.lab.report.page import write_report

__all__ = ["write_report"]

"""The report: one HTML page of what runs and studies did."""

from copd.lab.report.page import write_report

__all__ = ["write_report"]

"""Methods times seeds on the same held-out problems: from outcomes to the tables of a paper."""

from copd.lab.study.results import Outcome, StudyResults, load_results, save_results
from copd.lab.study.statistics import Summary, summarize
from copd.lab.study.tables import to_console, to_html, to_markdown

__all__ = [
    "Outcome",
    "StudyResults",
    "Summary",
    "load_results",
    "save_results",
    "summarize",
    "to_console",
    "to_html",
    "to_markdown",
]

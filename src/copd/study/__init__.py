"""Methods times seeds on the same held-out problems: from outcomes to the tables of a paper."""

from copd.study.results import Outcome, StudyResults, load_results, save_results
from copd.study.statistics import Summary, summarize
from copd.study.tables import to_console, to_html, to_markdown

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

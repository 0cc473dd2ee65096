"""The words of `copd report`. Knows no torch; what writes the page is imported when it is asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

ABOUT = "write what runs did as one HTML page to read offline"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The runs, and where to write."""
    about = "directory of a run, also one still going, or of a study"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=about)
    default = "file to write; by default RUN/report.html, for several ./report.html"
    parser.add_argument("--out", metavar="FILE", type=Path, help=default)
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Writes the page, and shows it if asked."""
    from copd.lab.report import write_report

    out = write_report(arguments.runs, arguments.out)
    print(f"report: {out}")
    if arguments.open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())

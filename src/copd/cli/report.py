"""`copd report`: options of the report."""

import argparse
from collections.abc import Sequence
from pathlib import Path

ABOUT = "write one HTML page of runs or studies, to read offline"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the runs and the options."""
    about = "directory of a run, which may be unfinished, or of a study"
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help=about)
    default = "file to write (default: RUN/report.html, or ./report.html for several)"
    parser.add_argument("--out", metavar="FILE", type=Path, help=default)
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Write the page, and open it if requested."""
    from copd.lab.report import write_report

    out = write_report(arguments.runs, arguments.out)
    print(f"report: {out}")
    if arguments.open:
        import webbrowser

        webbrowser.open(out.resolve().as_uri())

"""`copd compare`: options, messages and exit codes."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ABOUT = "run methods times seeds side by side, and compare them with intervals"
OWN_OPTIONS = ("--help", "--plan", "--tables")
_AGAIN = "Finished runs are kept; the same command continues."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the study file and the options that replace running it."""
    parser.add_argument("study", metavar="STUDY", type=Path, help="TOML file")
    parser.add_argument("--plan", action="store_true", help="show the runs and their budgets")
    tables = "write the tables of what is finished, run nothing"
    parser.add_argument("--tables", action="store_true", help=tables)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run or show a study; exit with 1 if a run failed and with 130 if interrupted."""
    from copd.lab.compare.command import run_study, show_plan

    if arguments.plan:
        show_plan(arguments.study, overrides)
        return
    try:
        failed = run_study(arguments.study, overrides, run=not arguments.tables)
    except KeyboardInterrupt:
        print(f"copd: interrupted. {_AGAIN}", file=sys.stderr)
        raise SystemExit(130) from None
    if failed:
        print(f"copd: error: failed: {'; '.join(failed)}. {_AGAIN}", file=sys.stderr)
        raise SystemExit(1)

"""The words of `copd data`: its options, and what they ask for. Knows no torch until it must."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from copd.config import FilesConfig

ABOUT = "check data files, and show their problems as a model sees them"
OWN_OPTIONS = ("--help", "--config", "--domain", "--model", "--show", "--json")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Everything else on the line is a setting of the domain: `--columns.prompt question`."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="file, folder or data set")
    parser.add_argument("--config", metavar="CONFIG", type=Path, help="TOML file with the settings")
    parser.add_argument("--domain", metavar="NAME", help="which of its domains")
    parser.add_argument("--model", metavar="MODEL", help='as whom to read: folder or "tiny"')
    parser.add_argument("--show", metavar="N", type=int, default=3, help="problems to show (3)")
    parser.add_argument("--json", action="store_true", help="print JSON, with every bad line")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints what the files hold; bad lines end in an error."""
    name, config = _settings(arguments, overrides)
    from copd.domains.files import open_files

    domain = open_files(name, config)
    from copd.run.inspection import describe_data, inspect

    report = inspect(domain, arguments.model, arguments.show)
    print(json.dumps(report, indent=2) if arguments.json else describe_data(report))
    if report["bad"]:
        raise ValueError(
            f"{len(report['bad'])} of {report['problems']} problems are bad: training refuses "
            "them. Correct them, or set drop_bad = true."
        )


def _settings(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[str, FilesConfig]:
    """The domain's name and settings, from a run's configuration or the command line alone."""
    from copd.config import FilesConfig, load_config, parse_files

    if arguments.config is None:
        if arguments.file is None or arguments.domain is not None:
            raise ValueError(
                "copd data needs a FILE, or --config CONFIG: got neither, or --domain alone. "
                "Name the file to check."
            )
        return Path(arguments.file).stem, parse_files(arguments.file, overrides)
    config = load_config(arguments.config, overrides)
    known = {n: d for n, d in config.domains.items() if isinstance(d, FilesConfig)}
    name = arguments.domain or next(iter(known), None)
    if name not in known or (arguments.domain is None and len(known) > 1):
        raise ValueError(
            f"--domain must name a domain of type 'files' in {arguments.config}: got "
            f"{arguments.domain!r}, it has {', '.join(known) or 'none'}. Add --domain NAME."
        )
    if arguments.file is None:
        return name, known[name]
    alone = {"path": arguments.file, "validation_path": None, "test_path": None}
    return name, known[name].model_copy(update=alone)

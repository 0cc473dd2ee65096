"""`copd data`: check data files, and measure the pass rates of their problems."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from copd.config import Config, FilesConfig

ABOUT = "check data files, and show their problems as a model reads them"
_RATES_ONLY = ("--out", "--rates", "--keep")
OWN_OPTIONS = (
    *("--help", "--config", "--domain", "--model", "--show", "--json", "--pass-rate"),
    *_RATES_ONLY,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; others are settings of the domain, such as `--columns.prompt question`."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="data file, folder or data set")
    parser.add_argument("--config", metavar="CONFIG", type=Path, help="TOML file with the settings")
    parser.add_argument("--domain", metavar="NAME", help="domain of CONFIG to check")
    model = 'model that reads the problems: model folder or "tiny"'
    parser.add_argument("--model", metavar="MODEL", help=model)
    show = "number of problems to show (default: 3)"
    parser.add_argument("--show", metavar="N", type=int, default=3, help=show)
    parser.add_argument("--json", action="store_true", help="print JSON, with every bad line")
    rates = parser.add_argument_group(
        "pass rates",
        "Measure how often MODEL solves each training problem, and drop those that teach nothing.",
    )
    rates.add_argument("--pass-rate", action="store_true", help="measure the pass rates")
    out = "new file for the problems that are kept"
    rates.add_argument("--out", metavar="FILE", type=Path, help=out)
    keep = "keep rates above LOW and below HIGH (default: 0 1)"
    rates.add_argument("--keep", metavar=("LOW", "HIGH"), type=float, nargs=2, help=keep)
    file = "JSON file of all rates, to resume from (default: OUT.rates)"
    rates.add_argument("--rates", metavar="FILE", type=Path, help=file)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print what the files hold, or pass rates; bad lines end in an error."""
    if arguments.pass_rate:
        return _pass_rates(arguments, overrides)
    for option in _RATES_ONLY:
        if getattr(arguments, option.removeprefix("--")) is not None:
            raise ValueError(f"{option} needs --pass-rate: got it alone. Add --pass-rate.")
    name, config = _settings(arguments, overrides)
    from copd.domains.files import open_files
    from copd.lab.data.inspection import describe_data, inspect

    report = inspect(open_files(name, config), arguments.model, arguments.show)
    print(json.dumps(report, indent=2) if arguments.json else describe_data(report))
    if report["bad"]:
        raise ValueError(
            f"{len(report['bad'])} of {report['problems']} problems are bad: training refuses "
            "them. Correct them, or set drop_bad = true."
        )


def _settings(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[str, FilesConfig]:
    """Return the domain's name and settings, from a configuration or the command line alone."""
    from copd.config import load_config, parse_files

    if arguments.config is None:
        if arguments.file is None or arguments.domain is not None:
            raise ValueError(
                "copd data needs a FILE, or --config CONFIG: got neither, or --domain without "
                "CONFIG. Name the file to check."
            )
        return Path(arguments.file).stem, parse_files(arguments.file, overrides)
    return _files_domain(arguments, load_config(arguments.config, overrides))


def _files_domain(arguments: argparse.Namespace, config: Config) -> tuple[str, FilesConfig]:
    """Return a domain of type 'files', with its paths replaced by FILE if that is given."""
    from copd.config import FilesConfig

    known = {n: d for n, d in config.domains.items() if isinstance(d, FilesConfig)}
    name = _chosen(arguments, known, "of type 'files' ")
    if arguments.file is None:
        return name, known[name]
    paths = {"path": arguments.file, "validation_path": None, "test_path": None}
    return name, known[name].model_copy(update=paths)


def _chosen(arguments: argparse.Namespace, known: Collection[str], kind: str = "") -> str:
    """Return the domain that `--domain` names, or the only one."""
    name = arguments.domain or next(iter(known), None)
    if name is None or name not in known or (arguments.domain is None and len(known) > 1):
        raise ValueError(
            f"--domain must name a domain {kind}in {arguments.config}: got "
            f"{arguments.domain!r}, it has {', '.join(known) or 'none'}. Add --domain NAME."
        )
    return name


def _pass_rates(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Measure pass rates; with a file of rates an interrupted call can be resumed."""
    low, high = arguments.keep or (0.0, 1.0)
    if not low < high:
        raise ValueError(f"--keep needs a LOW below HIGH: got {low:g} and {high:g}. Swap them.")
    name, config = _run_settings(arguments, overrides)
    rates = arguments.rates
    if rates is None and arguments.out is not None:
        rates = arguments.out.with_name(f"{arguments.out.name}.rates")
    from copd.cli import Stopped
    from copd.lab.data.pass_rate import pass_rates

    try:
        out, as_json = arguments.out, arguments.json
        pass_rates(config, name, keep=(low, high), out=out, rates=rates, as_json=as_json)
    except KeyboardInterrupt:
        advice = "Pass --rates FILE to save the rates that are measured."
        if rates is not None:
            advice = "The rates measured so far are saved; the same command continues."
        raise Stopped(130, f"interrupted. {advice}") from None


def _run_settings(arguments: argparse.Namespace, overrides: Sequence[str]) -> tuple[str, Config]:
    """Return the domain's name, and a run's settings with the model to measure."""
    from copd.config import load_config, parse_files_run

    model = arguments.model
    if arguments.config is None:
        if arguments.file is None or arguments.domain is not None or model is None:
            raise ValueError(
                "--pass-rate needs a FILE and a --model, or --config CONFIG: got neither. "
                "Name the file and the model."
            )
        config = parse_files_run(arguments.file, model, overrides)
        return next(iter(config.domains)), config
    config = load_config(arguments.config, overrides)
    if arguments.file is None:
        name = _chosen(arguments, config.domains)
    else:
        name, section = _files_domain(arguments, config)
        config = config.model_copy(update={"domains": {name: section}})
    if model is not None:
        updated = config.model.model_copy(update={"path": model})
        config = config.model_copy(update={"model": updated})
    return name, config

"""`copd diagnose`: options of the diagnosis."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from copd.cli.numbers import count, natural

ABOUT = "say whether a student can learn from a teacher by on-policy distillation"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; dotted ones override settings of the file."""
    model = 'model folder, GGUF file, adapter, hub name or "tiny"'
    parser.add_argument("student", metavar="STUDENT", help=model)
    parser.add_argument("teacher", metavar="TEACHER", help="the same")
    parser.add_argument("--config", metavar="CONFIG", type=Path, required=True, help="TOML file")
    some = "domains to use (default: all)"
    parser.add_argument(
        "--domain", metavar="NAME", nargs="+", action="extend", default=[], help=some
    )
    problems = "problems per domain (default: at most 100)"
    parser.add_argument("--num-problems", metavar="N", type=count, help=problems)
    samples = "rollouts per problem (default: 4)"
    parser.add_argument("--num-samples", metavar="N", type=count, default=4, help=samples)
    parser.add_argument("--split", choices=("train", "validation", "test"), default="validation")
    parser.add_argument("--seed", metavar="N", type=natural, help="seed of the sampling")
    out = "folder for a JSON file and an HTML page"
    parser.add_argument("--out", metavar="DIR", type=Path, help=out)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print the diagnosis of the pair."""
    from copd.config import load_config

    config = load_config(arguments.config, overrides)
    if arguments.seed is not None:
        config = config.model_copy(update={"seed": arguments.seed})
    from copd.lab.diagnose import diagnose

    diagnose(
        arguments.student,
        arguments.teacher,
        config,
        domains=arguments.domain,
        split=arguments.split,
        num_problems=arguments.num_problems,
        num_samples=arguments.num_samples,
        out=arguments.out,
        as_json=arguments.json,
    )

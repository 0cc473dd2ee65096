"""The words of `copd diagnose`. Knows no torch; what measures is imported when it is asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from copd.cli.numbers import count, natural

ABOUT = "say whether a student can learn from a teacher by on-policy distillation"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Who from whom, on what; settings of the file can be overridden, dotted."""
    model = 'model folder, GGUF file, adapter, hub name or "tiny"'
    parser.add_argument("student", metavar="STUDENT", help=model)
    parser.add_argument("teacher", metavar="TEACHER", help="likewise")
    parser.add_argument("--config", metavar="CONFIG", type=Path, required=True, help="TOML file")
    parser.add_argument(
        "--domain", metavar="NAME", nargs="+", action="extend", default=[], help="some, not all"
    )
    parser.add_argument("--num-problems", metavar="N", type=count, help="per domain (100)")
    parser.add_argument(
        "--num-samples", metavar="N", type=count, default=4, help="rollouts per problem (4)"
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), default="validation")
    parser.add_argument("--seed", metavar="N", type=natural, help="seed of the sampling")
    parser.add_argument("--out", metavar="DIR", type=Path, help="also write JSON and a page here")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Prints the diagnosis of the pair."""
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

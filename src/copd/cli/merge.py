"""`copd merge`: options of merge methods."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from copd.cli.numbers import natural, non_negative

if TYPE_CHECKING:
    from copd.config import MergeConfig

ABOUT = "merge models that were trained from the same base"

_OPTIONS = {
    "uniform": (),
    "weighted": ("weights",),
    "task_arithmetic": ("base", "scale"),
    "ties": ("base", "density", "scale"),
    "dare": ("base", "density", "scale", "seed"),
}
"""Merge methods and their options."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the models and the options of the methods."""
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="model folder")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write")
    parser.add_argument("--method", choices=tuple(_OPTIONS), default="uniform")
    weights = "one per model, in the order of the models"
    parser.add_argument("--weights", metavar="W", nargs="+", type=non_negative, help=weights)
    parser.add_argument("--base", metavar="DIR", type=Path, help="the model they started from")
    density = "share of the changes that is kept"
    parser.add_argument("--density", metavar="D", type=float, help=density)
    parser.add_argument("--scale", metavar="S", type=float, help="factor on the merged change")
    parser.add_argument("--seed", metavar="N", type=natural, help="seed of what dare drops")


def run(arguments: argparse.Namespace, _: Sequence[str]) -> None:
    """Write the merged model."""
    config = merge_config(arguments)
    from copd.run import commands

    commands.merge_models(arguments.models, arguments.out, config, arguments.base)


def merge_config(arguments: argparse.Namespace) -> MergeConfig:
    """Return the merge that the options describe; weights are keyed by the models as written."""
    from copd.config import parse_merge

    models, method = [str(model) for model in arguments.models], arguments.method
    if len(set(models)) < max(2, len(models)):
        raise ValueError(
            f"copd merge needs at least two different models: got {', '.join(models)}. "
            "Name each model folder once."
        )
    takes = _OPTIONS[method]
    known = dict.fromkeys(name for names in _OPTIONS.values() for name in names)
    options = vars(arguments)
    given = {name: options[name] for name in known if options[name] is not None}
    for name in given.keys() - takes:
        takers = " or ".join(key for key, names in _OPTIONS.items() if name in names)
        raise ValueError(
            f"--{name} has no effect with --method {method}: got {given[name]}. "
            f"Remove it, or use --method {takers}."
        )
    for name in {"weights", "base"} & set(takes) - given.keys():
        raise ValueError(f"--method {method} needs --{name}: got none. Add --{name}.")
    weights = given.get("weights", models)
    if len(weights) != len(models):
        raise ValueError(
            f"--weights must be one per model: got {len(weights)} for {len(models)} models. "
            "Give them in the order of the models."
        )
    if "weights" in given:
        given["weights"] = dict(zip(models, weights, strict=True))
    given.pop("base", None)
    return parse_merge({"type": method, **given})

"""The options of `copd plan --cluster`: from words to the cluster that is planned for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from copd.cli.numbers import count

if TYPE_CHECKING:
    from copd.config import Config
    from copd.planning import Report
    from copd.planning.cluster.machine import Machine
    from copd.planning.cluster.table import Cluster

OWN_OPTIONS = ("--cluster", "--gpus", "--assume")
GPUS = ("a100", "h100", "h200")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options about machines, their number, and what else is assumed."""
    about = "also predict seconds of a step on such GPUs (h100)"
    parser.add_argument("--cluster", nargs="?", const="h100", choices=GPUS, help=about)
    numbers = "how many there may be (3 8 24 64)"
    parser.add_argument("--gpus", metavar="N", type=count, nargs="+", help=numbers)
    assume = "other rates, prompts or lengths than the prediction lists"
    parser.add_argument("--assume", metavar="NAME=VALUE", nargs="+", action="extend", help=assume)


def find_machine(arguments: argparse.Namespace) -> Machine | None:
    """Return the kind of machine with the rates that are assumed, or None without --cluster."""
    if arguments.cluster is None:
        if arguments.gpus or arguments.assume:
            raise ValueError(
                "--gpus and --assume are about a cluster: got no --cluster. Add --cluster."
            )
        return None
    from copd.planning.cluster.machine import MACHINES

    machine = MACHINES[arguments.cluster]
    rates = {k: v for k, v in assumed(arguments).items() if k in vars(machine) and k != "name"}
    for name, value in rates.items():
        if value == 0 and not name.endswith("seconds"):
            raise ValueError(f"--assume {name} must be above 0: got 0. Pass another value.")
    return replace(machine, **rates)


def assumed(arguments: argparse.Namespace) -> dict[str, float]:
    """Parse the words of --assume."""
    found: dict[str, float] = {}
    for word in arguments.assume or ():
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < float("inf"):
            raise ValueError(
                f"--assume needs NAME=VALUE with a number of at least 0: got {word!r}. "
                "Write for example --assume bandwidth_efficiency=0.5."
            )
    return found


def on_gpus(config: Config) -> Config:
    """Return a configuration whose branches have GPUs of their own."""
    from copd.config import RayEngineConfig

    is_on_ray = isinstance(config.engine, RayEngineConfig) and config.engine.num_gpus > 0
    engine = config.engine if is_on_ray else RayEngineConfig(num_gpus=1.0)
    model = config.model.model_copy(update={"device": "cuda"})
    return config.model_copy(update={"engine": engine, "model": model})


def find_cluster(arguments: argparse.Namespace, machine: Machine, report: Report) -> Cluster:
    """Return the cluster that a report's plan is to run on."""
    from copd.planning.cluster.table import Cluster
    from copd.planning.workload import DOMAIN_NAMES

    known = {f"{domain}.{name}" for domain in report.workloads for name in DOMAIN_NAMES}
    if unknown := assumed(arguments).keys() - known - vars(machine).keys():
        raise ValueError(
            f"--assume names something that the prediction lists: got {', '.join(unknown)}. "
            "See the end of its output."
        )
    if report.shapes is None:
        raise ValueError(f"--cluster needs the sizes of the model: {report.why}")
    return Cluster(report, machine, _gpus(arguments, len(report.plan.branches)))


def _gpus(arguments: argparse.Namespace, least: int) -> Sequence[int]:
    """Return numbers of GPUs with one at least for every branch."""
    gpus = [n for n in arguments.gpus or (3, 8, 24, 64) if arguments.gpus or n >= least]
    if min(gpus, default=0) < least:
        raise ValueError(
            f"--gpus must be at least one for each of the {least} branches: got "
            f"{' '.join(map(str, gpus)) or 'fewer'}. Name larger numbers."
        )
    return gpus

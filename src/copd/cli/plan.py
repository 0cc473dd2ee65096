"""`copd plan`: print a run's stages, its cost and its memory, and its seconds on a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from copd.cli import cluster
from copd.cli.numbers import count, natural

ABOUT = "show who learns from whom, the cost and the memory"
OWN_OPTIONS = (
    "--help",
    "--json",
    "--completion-tokens",
    "--prompt-tokens",
    "--visual-tokens",
    "--memory",
    *cluster.OWN_OPTIONS,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options besides settings."""
    parser.add_argument("config", metavar="CONFIG", type=Path, help="TOML file")
    parser.add_argument("--json", action="store_true", help="print JSON")
    expected = "expected tokens of a completion; without it, costs are upper bounds"
    parser.add_argument("--completion-tokens", metavar="N", type=count, help=expected)
    prompt = "expected tokens of a prompt, those of pictures included"
    parser.add_argument("--prompt-tokens", metavar="N", type=count, help=prompt)
    visual = "how many of them stand for pixels"
    parser.add_argument("--visual-tokens", metavar="N", type=natural, help=visual)
    size = "what the device has, such as 80GB; by default this machine, where it is a CPU"
    parser.add_argument("--memory", metavar="SIZE", help=size)
    cluster.add_options(parser)


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print the plan, its cost and its memory; nothing is loaded."""
    import json

    from copd.config import load_config
    from copd.planning import Expected, memory_report, parse_size
    from copd.planning.cost import describe, plan_cost
    from copd.recipes import build_plan, to_dict

    config = load_config(arguments.config, overrides)
    plan, machine = build_plan(config), cluster.find_machine(arguments)
    expected = Expected(
        arguments.prompt_tokens,
        arguments.visual_tokens,
        arguments.completion_tokens,
        cluster.assumed(arguments),
    )
    capacity = None if arguments.memory is None else parse_size(arguments.memory)
    if machine:
        config, capacity = cluster.on_gpus(config), capacity or int(machine.memory)
    report = memory_report(config, plan, capacity=capacity, expected=expected)
    cost = plan_cost(plan, config, report.workloads)
    predicted = cluster.find_cluster(arguments, machine, report) if machine else None
    if arguments.json:
        values = {"plan": to_dict(plan), "cost": cost.to_dict(), "memory": report.to_dict()}
        more = {"cluster": predicted.to_list()} if predicted else {}
        print(json.dumps(values | more, indent=2))
        return
    parts = [describe(plan, cost), report.describe()]
    print("\n\n".join([*parts, predicted.describe()] if predicted else parts))

"""`copd plan`: words to what a run is made of, what it costs and what memory it needs."""

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
    """What the command takes besides settings."""
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
    """Print it; nothing is loaded."""
    from copd.config import load_config
    from copd.planning import memory_report, parse_size
    from copd.planning.cost import describe, plan_cost
    from copd.recipes import build_plan, to_dict

    config = load_config(arguments.config, overrides)
    plan = build_plan(config)
    cost = plan_cost(plan, config.rollout, completion_tokens=arguments.completion_tokens)
    memory = memory_report(
        config,
        plan,
        capacity=None if arguments.memory is None else parse_size(arguments.memory),
        prompt_tokens=arguments.prompt_tokens,
        visual_tokens=arguments.visual_tokens,
        completion_tokens=arguments.completion_tokens,
    )
    asked = cluster.cluster_of(arguments, config, plan)
    if not arguments.json:
        print(f"{describe(plan, cost)}\n\n{memory.describe()}")
        if asked:
            print(f"\n{cluster.describe(asked, arguments)}")
        return
    import json

    values = {"plan": to_dict(plan), "cost": cost.to_dict(), "memory": memory.to_dict()}
    predicted = {"cluster": cluster.to_list(asked, arguments)} if asked else {}
    print(json.dumps(values | predicted, indent=2))

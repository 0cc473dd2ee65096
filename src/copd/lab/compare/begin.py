"""Begins a run where another one trained its experts: the files it would have written itself.

Knows how a run directory looks, not how anything is learned.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from copd.config import Config
from copd.engine import Engine, create_engine
from copd.recipes import build_plan
from copd.run.checkpoint import Checkpoint, adopt_checkpoint, checkpoint_at, latest_checkpoint
from copd.run.cost import no_cost
from copd.run.preflight import check_teachers
from copd.run.runner import Runner
from copd.storage import read_lines, write_atomically

LogLine = Mapping[str, Any]


def begin_after(config: Config, leader: Path, step: int, console: Console) -> None:
    """Takes the branches after `step` over from the run in `leader`, with their lines.

    Does nothing for a run that has a checkpoint, or where the leader kept none at that step: then
    the run trains its experts itself, which ends with the same bits.
    """
    root = config.output_dir
    source = checkpoint_at(leader / "checkpoints", step)
    if source is None or latest_checkpoint(root / "checkpoints"):
        return
    _require_budget(config, source, step)
    console.print(f"beginning after step {step} of {leader}, which trains the same experts")
    root.mkdir(parents=True, exist_ok=True)
    for name, lines in _lines(config, leader, step).items():
        write_atomically(root / name, "".join(json.dumps(line) + "\n" for line in lines))
    engine = create_engine(config)
    try:
        _adopt(config, engine, source)
    finally:
        engine.close()


def _adopt(config: Config, engine: Engine, source: Checkpoint) -> None:
    """Checks the teachers, which is possible only before the first step, then writes."""
    runner = Runner(config, engine, Console(quiet=True))
    runner.prepare()
    check_teachers(engine, config, runner.plan)
    adopt_checkpoint(config.output_dir / "checkpoints", source, engine, runner.plan.branches)


def _require_budget(config: Config, source: Checkpoint, step: int) -> None:
    trained = build_plan(config).stages[0].trained
    spent = sum(source.cost[branch]["sampled_tokens"] for branch in trained)
    if config.max_tokens is not None and spent >= config.max_tokens:
        raise ValueError(
            f"the experts alone must stay below the budget of tokens: got {spent:,} after step "
            f"{step}, expected less than {config.max_tokens:,}. Lower recipe.expert_steps."
        )


def _lines(config: Config, leader: Path, step: int) -> dict[str, list[dict[str, Any]]]:
    """The lines of the first steps as this run would have written them."""
    plan = build_plan(config)
    trained = plan.stages[0].trained

    def first(name: str) -> Iterator[dict[str, Any]]:
        return (line for line in read_lines(leader / name) if line["step"] <= step)

    metrics = list(first("metrics.jsonl"))
    shares = token_shares(metrics, trained)
    return {
        "metrics.jsonl": [
            {
                **line,
                "branches": {name: line["branches"][name] for name in trained},
                "cost": no_cost(plan.branches) | {name: line["cost"][name] for name in trained},
            }
            for line in metrics
        ],
        "rollouts.jsonl": [line for line in first("rollouts.jsonl") if line["branch"] in trained],
        "timings.jsonl": [
            {**line, "seconds": round(line["seconds"] * share, 4)}
            for line, share in zip(first("timings.jsonl"), shares, strict=True)
        ],
    }


def token_shares(metrics: Iterable[LogLine], branches: tuple[str, ...]) -> list[float]:
    """The part of each step's tokens that these branches trained on, which its seconds go by."""
    shares, before = [], dict[str, int]()
    for line in metrics:
        now = {name: cost["trained_tokens"] for name, cost in line["cost"].items()}
        tokens = {name: count - before.get(name, 0) for name, count in now.items()}
        shares.append(sum(tokens[name] for name in branches) / sum(tokens.values()))
        before = now
    return shares

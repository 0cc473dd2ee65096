"""Checks the cost model against small runs on this machine: `python -m benchmarks.cluster`.

Rates are fitted to the CPU time of two runs, then other runs are predicted: other models, prompts,
groups, lengths and numbers of branches. The result is docs/scaling.json, and the table of
docs/scaling.md on the terminal.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoConfig

from benchmarks.cluster_fit import Seen, fit
from benchmarks.model import rotary, save_random
from copd.branch import Branch
from copd.config import Config
from copd.engine import Engine, create_engine
from copd.planning.cluster import (
    Lengths,
    Machine,
    Setup,
    Widths,
    Workload,
    last_update,
    seconds_by_method,
)
from copd.policy.tiny import resolve
from copd.recipes import OPD, Stage, build_plan
from copd.run.step import Position, take_step
from copd.types import RolloutBatch

Input = TypeVar("Input")
Output = TypeVar("Output")

VERBS = ("sample", "score", "update")
_LIMITS = {"shortest_edge": 16 * 16, "longest_edge": 1024 * 1024}


@dataclass(frozen=True)
class Run:
    """What differs between measured runs."""

    name: str
    size: str = "small"
    prompts: int = 4
    group: int = 4
    tokens: int = 24
    domains: tuple[str, ...] = ("text", "image", "video")


SIZES = {"small": (128, 2), "middle": (192, 3), "large": (256, 4)}
"""Width and layers."""

FITTED = (Run("fitted, small"), Run("fitted, middle", size="middle", tokens=48))
PREDICTED = (
    Run("larger model", size="large"),
    Run("more prompts", prompts=10),
    Run("larger groups", size="middle", group=8),
    Run("longer completions", tokens=72),
    Run("two branches", size="middle", domains=("text", "image")),
    Run("another model, the embedded base", size="tiny", prompts=6, group=8, tokens=40),
)


class Clock:
    """An engine that tells the CPU time of every branch in every method."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_parallel = engine.is_parallel
        self.seconds: dict[str, dict[str, float]] = {method: {} for method in VERBS}

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        self._engine.spawn(name, model, frozen=frozen)

    def drop(self, name: str) -> None:
        self._engine.drop(name)

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        answers = self._engine.call(update_wrapper(partial(timed, method), method), inputs)
        for name, (_, seconds) in answers.items():
            self.seconds[method.__name__][name] = seconds
        return {name: answer for name, (answer, _) in answers.items()}

    def clear(self) -> None:
        self._engine.clear()

    def close(self) -> None:
        self._engine.close()


def timed(
    method: Callable[[Branch, Input], Output], branch: Branch, value: Input
) -> tuple[Output, float]:
    started = time.process_time()
    return method(branch, value), time.process_time() - started


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="measured steps of every run")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the result")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seen = measure([*FITTED, *PREDICTED], Path(folder), given.rounds)
    machine = fit([step for run in FITTED for step in seen[run.name]])
    record = {"machine": vars(machine), "runs": compare(machine, seen)}
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (given.out / "scaling.json").write_text(text, encoding="utf-8")
    print(page(record))


def measure(runs: Sequence[Run], folder: Path, rounds: int) -> dict[str, list[Seen]]:
    """The runs take turns, a mutual step each, after one that warms them up."""
    engines = {run.name: opened(run, folder) for run in runs}
    seen: dict[str, list[Seen]] = {run.name: [] for run in runs}
    for turn in range(rounds + 1):
        for run in runs:
            engine, config = engines[run.name]
            step = one_step(engine, config, turn + 1)
            print(f"turn {turn}: {run.name}", file=sys.stderr, flush=True)
            if turn:
                seen[run.name].append(step)
    for engine, _ in engines.values():
        engine.close()
    return seen


def opened(run: Run, folder: Path) -> tuple[Clock, Config]:
    """A run's branches, on random weights unless it is the embedded base."""
    model = folder / run.size
    if run.size != "tiny" and not model.exists():
        save(model, *SIZES[run.size])
    config = Config.model_validate(
        {
            "model": {"path": "tiny" if run.size == "tiny" else str(model), "device": "cpu"},
            "domains": {name: {"type": "digits", "modality": name} for name in run.domains},
            "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1},
            "rollout": {
                "num_prompts": run.prompts,
                "group_size": run.group,
                "max_completion_tokens": run.tokens,
            },
            "engine": {"num_threads": 1},
        }
    )
    clock = Clock(create_engine(config))
    for name in build_plan(config).branches:
        clock.spawn(name, config.model.path)
    return clock, config


def save(folder: Path, width: int, layers: int) -> None:
    """A random model of these sizes."""
    text = {
        "vocab_size": 103,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "rope_parameters": rotary(10000.0, (6, 5, 5)),
    }
    vision = {
        "hidden_size": width // 2,
        "intermediate_size": width,
        "depth": layers // 2,
        "num_heads": 4,
        "out_hidden_size": width,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    save_random(folder, text=text, vision=vision, patch=8, limits=_LIMITS)


def one_step(engine: Clock, config: Config, step: int) -> Seen:
    """A mutual step, with the lengths that came of it."""
    stage: Stage = build_plan(config).stages[-1]
    result = take_step(engine, config, Position(step, 1, stage))
    sampled: dict[str, list[Workload]] = {}
    asked: dict[str, list[Workload]] = {}
    shapes = frames_of(config)
    for name, lessons in result.lessons.items():
        for action, lesson in zip(stage.actions_of(name), lessons, strict=True):
            load = load_of(lesson.batch, config.rollout.group_size, shapes[action.domain])
            sampled.setdefault(name, []).append(load)
            if isinstance(action, OPD):
                asked.setdefault(action.teacher, []).append(load)
    seconds = {method: dict(engine.seconds[method]) for method in VERBS}
    return Seen(stage, setup_of(config), sampled, asked, seconds)


def load_of(batch: RolloutBatch, group_size: int, frames: tuple[int, ...]) -> Workload:
    lengths = batch.lengths.astype(float)
    told = Lengths(lengths.mean(), (lengths**2).mean(), lengths.max())
    tokens = round(float(batch.prompt_lengths.mean()))
    return Workload(len(batch.problems), group_size, tokens, frames, told)


def frames_of(config: Config) -> dict[str, tuple[int, ...]]:
    """Patches of a problem's pictures by domain, from one that is rendered here."""
    from copd.domains import load_domains
    from copd.policy.rendering.render import Renderer

    model = str(resolve(config.model.path))
    renderer = Renderer.load(model, AutoConfig.from_pretrained(model))
    found = {}
    for name, domain in load_domains(config.domains).items():
        media = renderer.render(domain.problem("train", 0).messages).media
        grid = media.get("image_grid_thw", media.get("video_grid_thw"))
        grids = [] if grid is None else grid.tolist()
        found[name] = tuple(h * w for t, h, w in grids for _ in range(t))
    return found


def setup_of(config: Config) -> Setup:
    widths = Widths.read(AutoConfig.from_pretrained(resolve(config.model.path)).to_dict())
    return Setup(widths, config.optimizer.micro_batch_tokens, config.rollout.max_rows)


def compare(machine: Machine, seen: Mapping[str, Sequence[Seen]]) -> list[dict[str, Any]]:
    """Medians over steps: each method and all of them over all branches, and a step side by side."""
    rows = []
    for name, steps in seen.items():
        pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for step in steps:
            told = seconds_by_method(machine, step.setup, step.sampled, step.asked)
            for method in VERBS:
                pairs[method].append(
                    (sum(step.seconds[method].values()), sum(told[method].values()))
                )
            measured, predicted = (sum(pairs[v][-1][i] for v in VERBS) for i in (0, 1))
            pairs["alone"].append((measured, predicted))
            ends = last_update(step.seconds, step.stage), last_update(told, step.stage)
            pairs["together"].append(ends)
        medians = {
            key: [statistics.median(one) for one in zip(*own, strict=True)]
            for key, own in pairs.items()
        }
        rows.append({"run": name, **medians})
    return rows


def page(record: Mapping[str, Any]) -> str:
    """A Markdown table: measured, predicted and error, in CPU seconds."""
    lines = [
        "| run | sample | score | update | one after another | side by side |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["runs"]:
        cells = [cell(*row[key]) for key in (*VERBS, "alone", "together")]
        lines.append(f"| {row['run']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(measured: float, predicted: float) -> str:
    return f"{measured:.2f}, {predicted:.2f} ({predicted / measured - 1:+.0%})"


if __name__ == "__main__":
    main()

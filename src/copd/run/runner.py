"""Walks a plan with an engine: the training loop, its checkpoints, and the models it ends with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from torch import Tensor

from copd.branch import Branch
from copd.config import Config
from copd.engine import Engine
from copd.recipes import Plan, build_plan, to_dict
from copd.run.checkpoint import latest_checkpoint, save_checkpoint
from copd.run.cost import add_step, no_cost
from copd.run.directory import (
    append_lines,
    make_folder_atomically,
    truncate_lines,
    write_atomically,
)
from copd.run.evaluation import (
    Results,
    evaluate,
    from_json,
    gain_lines,
    overall,
    results_table,
    to_json,
)
from copd.run.merge import Weights, merge_adapters, merge_weights
from copd.run.preflight import check_teachers
from copd.run.progress import RunProgress
from copd.run.rollouts import rollout_records
from copd.run.step import REFERENCE, Position, StepResult, asks_base, take_step

BASE = "base"
"""The untrained model's name in results."""


class Runner:
    """One run in its directory.

    `run` starts it or continues it: both are the same thing.
    """

    def __init__(self, config: Config, engine: Engine, console: Console) -> None:
        self.config, self.engine, self.console = config, engine, console
        self.plan: Plan = build_plan(config)
        self.root: Path = config.output_dir

    def prepare(self) -> None:
        """Brings the branches to life; a wrong model or domain shows here, before any writing."""
        for name in self.plan.branches:
            self.engine.spawn(name, self.config.model.path)
        if asks_base(self.config):
            self.engine.spawn(REFERENCE, self.config.model.path, frozen=True)

    def run(self) -> None:
        """Trains from the newest checkpoint, or the beginning, to the final models' table."""
        if (finished := self._finished()) is not None:
            self._report(finished)
            return
        self.prepare()
        self._write_settings()
        done, cost = self._restore()
        if done == 0:
            check_teachers(self.engine, self.config, self.plan)
        results = self._base_results(done)
        self._train(done, cost)
        self._finish(results)

    def _write_settings(self) -> None:
        """What the run is, for people and for resume."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / "plan.json", json.dumps(to_dict(self.plan), indent=2))
        write_atomically(self.root / "config.json", self.config.model_dump_json(indent=2))

    def _finished(self) -> dict[str, Results] | None:
        """The results of a run that has ended, else None."""
        path = self.root / "eval.json"
        results = from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
        return {**results} if set(results) == {BASE, *self._measured} else None

    @property
    def _measured(self) -> list[str]:
        """The models a run ends with: every branch, and what they merge into."""
        return [*self.plan.branches, *([self.plan.merge.into] if self.plan.merge else [])]

    @property
    def _shares_base(self) -> bool:
        return self.config.model.branches == "lora"

    def _restore(self) -> tuple[int, dict[str, dict[str, int]]]:
        checkpoint = latest_checkpoint(self.root / "checkpoints")
        done, cost = (
            (checkpoint.step, checkpoint.cost) if checkpoint else (0, no_cost(self.plan.branches))
        )
        if checkpoint:
            self.engine.each(Branch.restore, dict.fromkeys(self.plan.branches, checkpoint.folder))
            self.console.print(f"continuing after step {done} of {self.plan.total_steps}")
        for name in ("metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "evaluations.jsonl"):
            truncate_lines(self.root / name, lambda record: record["step"] <= done)
        return done, cost

    def _train(self, done: int, cost: dict[str, dict[str, int]]) -> None:
        total, settings = self.plan.total_steps, self.config.checkpoint
        with RunProgress(self.console, total, done) as progress:
            for step in range(done + 1, total + 1):
                started = time.perf_counter()
                index, _ = self.plan.locate(step - 1)
                position = Position(step, index, self.plan.stages[index])
                result = take_step(self.engine, self.config, position)
                cost = add_step(cost, position.stage, result.lessons)
                self._log(position, result, cost)
                self._evaluate_sometimes(step)
                seconds = round(time.perf_counter() - started, 4)
                append_lines(self.root / "timings.jsonl", [{"step": step, "seconds": seconds}])
                progress.advance(position, result.metrics, seconds)
                if step % settings.every == 0 or step == total:
                    root, branches = self.root / "checkpoints", self.plan.branches
                    save_checkpoint(root, self.engine, branches, step, cost, keep=settings.keep)

    def _log(self, position: Position, result: StepResult, cost: dict[str, dict[str, int]]) -> None:
        line = {
            "step": position.step,
            "stage": position.stage.name,
            "stage_index": position.stage_index,
            "branches": result.metrics,
            "cost": cost,
        }
        append_lines(self.root / "metrics.jsonl", [line])
        append_lines(self.root / "rollouts.jsonl", rollout_records(position.step, result.lessons))

    def _evaluate_sometimes(self, step: int) -> None:
        every = self.config.evaluation.every
        if every and step % every == 0 and step < self.plan.total_steps:
            results = evaluate(self.engine, self.config, self.plan.branches)
            line = {"step": step, "results": to_json(results)}
            append_lines(self.root / "evaluations.jsonl", [line])

    def _base_results(self, done: int) -> Results:
        """The base's results: measured before the first step, read from a file afterwards."""
        path = self.root / "eval.json"
        if path.exists():
            return from_json(json.loads(path.read_text(encoding="utf-8")))[BASE]
        self.console.print("evaluating the base")
        name = self.plan.branches[0]
        if done:
            self.engine.spawn(BASE, self.config.model.path, frozen=True)
            name = BASE
        results = evaluate(self.engine, self.config, [name])[name]
        if done:
            self.engine.drop(BASE)
        write_atomically(path, json.dumps(to_json({BASE: results})))
        return results

    def _finish(self, base: Results) -> None:
        """Merges, exports, evaluates, and prints what came out."""
        final = self.root / "final"
        if self.plan.merge is None:
            self._export(final)
        else:
            self._merge(final)
        if self._shares_base:
            names = {name: Path(name) for name in self._measured}
            self._export_each(names, self.root / "adapters", Branch.export_adapter)
        self.console.print("evaluating the trained models")
        results = {BASE: base, **evaluate(self.engine, self.config, self._measured)}
        write_atomically(self.root / "eval.json", json.dumps(to_json(results)))
        self._report(results)

    def _export(self, final: Path) -> None:
        """Without a merge the result branch is the final model, or every branch by its name."""
        if self.plan.result:
            self._export_each({self.plan.result: Path()}, final)
        else:
            self._export_each({name: Path(name) for name in self.plan.branches}, final)

    def _export_each(
        self,
        places: dict[str, Path],
        folder: Path,
        verb: Callable[[Branch, Path], None] = Branch.export,
    ) -> None:
        def fill(aside: Path) -> None:
            self.engine.each(verb, {name: aside / place for name, place in places.items()})

        make_folder_atomically(folder, fill)

    def _merge(self, final: Path) -> None:
        """The merged weights become a branch, to be measured and exported like any other."""
        merge = self.plan.merge
        assert merge is not None, "only called with a merge"
        self.engine.spawn(merge.into, self.config.model.path)
        base = self.engine.each(Branch.weights, {merge.into: None})[merge.into]

        def accuracy(weights: Weights) -> float:
            self.engine.each(Branch.set_weights, {merge.into: weights})
            results = evaluate(self.engine, self.config, [merge.into], split="validation")
            return overall(results[merge.into]).mean

        branches: dict[str, dict[str, Tensor]] = self.engine.each(
            Branch.weights, dict.fromkeys(merge.branches, None)
        )
        if self._shares_base:
            weights, shares = merge_adapters(merge.method, branches, accuracy)
        else:
            weights, shares = merge_weights(merge.method, branches, lambda: base, accuracy)
        self.engine.each(Branch.set_weights, {merge.into: weights})
        self._export_each({merge.into: Path()}, final)
        how = {"method": merge.method.type, "branches": list(merge.branches), "shares": shares}
        write_atomically(self.root / "merge.json", json.dumps(how, indent=2))
        parts = [f"{shares[name]:.2f} {name}" if shares else name for name in merge.branches]
        self.console.print(f"{merge.into}: {merge.method.type} merge of {', '.join(parts)}")

    def _report(self, results: dict[str, Results]) -> None:
        title = "held-out accuracy with 95 % intervals over problems"
        self.console.print(results_table(results, title))
        for model in [self.plan.final] if self.plan.final else self.plan.branches:
            for line in gain_lines(results, model, BASE):
                self.console.print(line)
        self.console.print(f"final model: {self.root / 'final'}")

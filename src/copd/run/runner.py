"""Walks a plan with an engine: the training loop, its checkpoints, and the models it ends with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from copd.branch import Branch
from copd.config import Config
from copd.domains import with_sizes
from copd.engine import Engine, wait_for
from copd.monitor.history import History, zero_variance_warnings
from copd.monitor.progress import RunProgress
from copd.monitor.results import Results, from_json, gain_lines, results_table, to_json
from copd.monitor.trackers import Trackers, check_installed, evaluation_values, step_values
from copd.recipes import Plan, build_plan, to_dict
from copd.run.checkpoint import latest_checkpoint, save_checkpoint, saved_steps
from copd.run.cost import CostCounts, add_step, no_cost
from copd.run.dynamics import measure
from copd.run.evaluation import evaluate, measured_models
from copd.run.merge import merge_branches
from copd.run.preflight import check_samplers, check_teachers
from copd.run.recovery import retry_lost_branches
from copd.run.rollouts import rollout_records
from copd.run.step import REFERENCE, Position, StepResult, needs_reference, take_steps
from copd.run.windows import compares, evaluates, positions_of, saves, windows
from copd.storage import (
    append_lines,
    make_folder_atomically,
    read_lines,
    truncate_lines,
    write_atomically,
)
from copd.types import Split

BASE = "base"
"""The untrained model's name in results."""

LINES = ("metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "evaluations.jsonl", "dynamics.jsonl")
"""Files that a run only appends to."""


class Runner:
    """One run in its directory.

    `run` starts it or continues it: both are the same thing.
    """

    def __init__(self, config: Config, engine: Engine, console: Console) -> None:
        config = with_sizes(config, console.print)
        self.config, self.engine, self.console = config, engine, console
        self.plan: Plan = build_plan(config)
        self.root: Path = config.output_dir
        self.history = History(self.plan, evaluation_every=config.evaluation.every)
        self.progress = RunProgress(console, str(self.root), self.history, config.monitor.overlap_k)
        self.trackers = Trackers(config, console.print)

    def prepare(self) -> None:
        """Brings the branches to life; a wrong model or domain shows here, before any writing."""
        check_installed(self.config.tracking)
        for name in self.plan.branches:
            self.engine.spawn(name, self.config.model.path)
        if needs_reference(self.config) or self.config.monitor.every:
            self.engine.spawn(REFERENCE, self.config.model.path, frozen=True)
        wait_for(self.engine, self.plan.branches)

    def run(self, *, measure: bool = True) -> None:
        """Trains from the newest checkpoint, or the beginning, to the final models' table.

        Without `measure` it ends with the last step's checkpoint.
        """
        if (finished := self._finished()) is not None:
            self._report(finished)
            return
        self.prepare()
        self._write_settings()
        sent = max((line["step"] for line in read_lines(self.root / "timings.jsonl")), default=0)
        self._forget_undone()
        with self.trackers.opened(sent), self.progress:
            results = retry_lost_branches(
                lambda start: self._walk(*start, measure=measure),
                self._restore,
                again=self._begin_again,
                progress=lambda: saved_steps(self.root / "checkpoints"),
                max_failures=self.config.engine.max_failures,
                say=self.console.print,
            )
        if results is not None:
            self._report(results)

    def _walk(self, done: int, cost: CostCounts, *, measure: bool) -> dict[str, Results] | None:
        """From a checkpoint to the end, unless a branch is lost on the way."""
        check_samplers(self.engine, self.config, self.plan.branches)
        if done == 0:
            check_teachers(self.engine, self.config, self.plan)
        base = {BASE: self._base_results(done)} if self.config.evaluation.base else {}
        self._train(done, cost)
        return self._finish(base) if measure else None

    def _begin_again(self) -> tuple[int, CostCounts]:
        """All branches anew, as they were in the newest checkpoint."""
        self.engine.clear()
        self.prepare()
        self._forget_undone()
        return self._restore()

    def _write_settings(self) -> None:
        """What the run is, for people and for resume."""
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / "plan.json", json.dumps(to_dict(self.plan), indent=2))
        write_atomically(self.root / "config.json", self.config.model_dump_json(indent=2))

    def _finished(self) -> dict[str, Results] | None:
        """The results of a run that has ended, else None."""
        path = self.root / "eval.json"
        if not path.exists():
            return None
        results = from_json(json.loads(path.read_text(encoding="utf-8")))
        base = {BASE} if self.config.evaluation.base else set()
        return {**results} if set(results) == {*base, *self._measured} else None

    @property
    def _measured(self) -> list[str]:
        """The models a run ends with, as far as they are measured."""
        return measured_models(self.plan, self.config.evaluation)

    def _forget_undone(self) -> None:
        """Lines of steps after the newest checkpoint; those that are left are the history."""
        done = saved_steps(self.root / "checkpoints")
        for name in LINES:
            truncate_lines(self.root / name, lambda record: 0 < done >= record["step"])
        lines = (read_lines(self.root / name) for name in ("metrics.jsonl", "timings.jsonl"))
        self.history.read(*lines)

    def _restore(self) -> tuple[int, CostCounts]:
        checkpoint = latest_checkpoint(self.root / "checkpoints")
        if checkpoint is None:
            return 0, no_cost(self.plan.branches)
        self.engine.call(Branch.restore, dict.fromkeys(self.plan.branches, checkpoint.folder))
        self.console.print(f"continuing after step {checkpoint.step} of {self.plan.total_steps}")
        return checkpoint.step, checkpoint.cost

    def _train(self, done: int, cost: CostCounts) -> None:
        if done == 0:
            self._measure_sometimes(0, "start")
        for window in () if self._is_spent(cost) else windows(self.config, self.plan, done):
            positions = positions_of(self.plan, window, read_lines(self.root / "dynamics.jsonl"))
            started = time.perf_counter()
            with closing(take_steps(self.engine, self.config, positions)) as results:
                for position, result in zip(positions, results, strict=True):
                    cost = self._end_step(position, result, cost, started)
                    started = time.perf_counter()
            if self._is_spent(cost):
                break

    def _end_step(
        self, position: Position, result: StepResult, cost: CostCounts, started: float
    ) -> CostCounts:
        """Writes and measures what follows a step; returns the cost so far."""
        step = position.step
        cost = add_step(cost, position.stage, result.lessons)
        is_last = step == self.plan.total_steps or self._is_spent(cost)
        line = self._log(position, result, cost)
        results = self._evaluate_sometimes(step)
        self._measure_sometimes(step, position.stage.name, is_last=is_last)
        seconds = round(time.perf_counter() - started, 4)
        append_lines(self.root / "timings.jsonl", [{"step": step, "seconds": seconds}])
        self.progress.advance(line, seconds)
        self.trackers.log(step, step_values(line, seconds, results))
        if is_last or saves(self.config, step):
            root, settings = self.root / "checkpoints", self.config.checkpoint
            save_checkpoint(root, self.engine, self.plan.branches, step, cost, settings=settings)
        return cost

    def _is_spent(self, cost: CostCounts) -> bool:
        """True once all branches together have sampled the tokens they may."""
        limit = self.config.max_tokens
        return limit is not None and sum(c["sampled_tokens"] for c in cost.values()) >= limit

    def _log(self, position: Position, result: StepResult, cost: CostCounts) -> dict[str, Any]:
        line = {
            "step": position.step,
            "stage": position.stage.name,
            "stage_index": position.stage_index,
            "branches": result.metrics,
            "cost": cost,
        }
        append_lines(self.root / "metrics.jsonl", [line])
        append_lines(self.root / "rollouts.jsonl", rollout_records(position.step, result.lessons))
        return line

    def _evaluate_sometimes(self, step: int) -> Mapping[str, Results]:
        """What the branches can do after this step, where it is a step to ask that."""
        if not evaluates(self.config, self.plan, step):
            return {}
        results = self._evaluate("evaluating the branches", self.plan.branches, in_step=True)
        line = {"step": step, "results": to_json(results)}
        append_lines(self.root / "evaluations.jsonl", [line])
        return results

    def _evaluate(
        self, title: str, names: Sequence[str], *, split: Split | None = None, in_step: bool = False
    ) -> dict[str, Results]:
        """An evaluation whose progress can be seen."""
        with self.progress.phase(title, len(self.config.domains), in_step=in_step) as domain_done:
            return {
                **evaluate(self.engine, self.config, names, split=split, domain_done=domain_done)
            }

    def _measure_sometimes(self, step: int, stage: str, *, is_last: bool = False) -> None:
        if self.config.monitor.every and (is_last or compares(self.config, step)):
            line = measure(self.engine, self.config, self.plan.branches, step, stage)
            append_lines(self.root / "dynamics.jsonl", [line])

    def _base_results(self, done: int) -> Results:
        """The base's results: measured before the first step, read from a file afterwards."""
        path = self.root / "eval.json"
        if path.exists():
            return from_json(json.loads(path.read_text(encoding="utf-8")))[BASE]
        name = self.plan.branches[0]
        if done:
            self.engine.spawn(BASE, self.config.model.path, frozen=True)
            name = BASE
        results = self._evaluate("evaluating the base", [name])[name]
        if done:
            self.engine.drop(BASE)
        write_atomically(path, json.dumps(to_json({BASE: results})))
        self.trackers.log_again(0, evaluation_values({BASE: results}))
        return results

    def _finish(self, base: dict[str, Results]) -> dict[str, Results]:
        """Merges, exports and evaluates."""
        final = self.root / "final"
        if self.plan.merge is None:
            self._export(final)
        else:
            self._merge(final)
        if self.config.model.branches == "lora":
            names = {name: Path(name) for name in self._measured}
            self._export_each(names, self.root / "adapters", Branch.export_adapter)
        trained = self._evaluate("evaluating the trained models", self._measured)
        results = {**base, **trained}
        write_atomically(self.root / "eval.json", json.dumps(to_json(results)))
        self.trackers.log_again(self.plan.total_steps, evaluation_values(trained))
        return results

    def _export(self, final: Path) -> None:
        """Without a merge the result branch is the final model, or every branch by its name."""
        result = self.plan.result
        places = {result: Path()} if result else {name: Path(name) for name in self.plan.branches}
        self._export_each(places, final, Branch.export)

    def _export_each(
        self, places: dict[str, Path], folder: Path, method: Callable[[Branch, Path], None]
    ) -> None:
        def fill(aside: Path) -> None:
            self.engine.call(method, {name: aside / place for name, place in places.items()})

        make_folder_atomically(folder, fill)

    def _merge(self, final: Path) -> None:
        """The merged weights become a branch, to be measured and exported like any other."""
        merge = self.plan.merge
        assert merge is not None, "only called with a merge"

        def validate(model: str) -> Results:
            title = "trying merge weights"
            return self._evaluate(title, [model], split="validation", in_step=True)[model]

        shares = merge_branches(self.engine, self.config.model, merge, validate)
        self._export_each({merge.into: Path()}, final, Branch.export)
        how = {"method": merge.method.type, "branches": list(merge.branches), "shares": shares}
        write_atomically(self.root / "merge.json", json.dumps(how, indent=2))
        parts = [f"{shares[name]:.2f} {name}" if shares else name for name in merge.branches]
        self.console.print(f"{merge.into}: {merge.method.type} merge of {', '.join(parts)}")

    def _report(self, results: dict[str, Results]) -> None:
        title = "held-out accuracy with 95 % intervals over problems"
        self.console.print(results_table(results, title))
        for model in [self.plan.final] if self.plan.final else self.plan.branches:
            for line in gain_lines(results, model, BASE) if BASE in results else ():
                self.console.print(line)
        for line in [*zero_variance_warnings(self.history), f"final model: {self.root / 'final'}"]:
            self.console.print(line)

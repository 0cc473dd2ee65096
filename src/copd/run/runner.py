"""The runner: trains the branches of a plan, saves and resumes, and exports the final models."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console

from copd.branch import Branch
from copd.config import BASE, Config
from copd.domains import with_sizes
from copd.engine import Engine, wait_for
from copd.monitor.history import History, zero_variance_warnings
from copd.monitor.progress import RunProgress
from copd.monitor.results import Results, from_json, gain_lines, results_table, to_json
from copd.monitor.trackers import Trackers, check_installed, evaluation_values, step_values
from copd.recipes import Merge, Plan, build_plan, to_dict
from copd.run.checkpoint import latest_checkpoint, save_checkpoint, saved_steps
from copd.run.cost import CostCounts, add_step, no_cost
from copd.run.dynamics import measure_dynamics
from copd.run.evaluation import evaluate_branches
from copd.run.merge import merge_branches
from copd.run.preflight import check_samplers, check_teachers
from copd.run.recovery import retry_lost_branches
from copd.run.rollouts import rollout_records
from copd.run.step import Position, StepResult, needs_reference, take_steps
from copd.run.windows import evaluates, measures_dynamics, positions_of, saves, windows
from copd.storage import (
    append_lines,
    make_folder_atomically,
    read_lines,
    truncate_lines,
    write_atomically,
)
from copd.types import Split

LINES = ("metrics.jsonl", "timings.jsonl", "rollouts.jsonl", "evaluations.jsonl", "dynamics.jsonl")
"""Files to which a run only appends lines, each with its step."""


class Runner:
    """One run in its directory; starting and resuming are the same."""

    def __init__(self, config: Config, engine: Engine, console: Console) -> None:
        config = with_sizes(config, console.print)
        self.config, self.engine, self.console = config, engine, console
        self.plan: Plan = build_plan(config)
        self.root: Path = config.output_dir
        self.history = History(self.plan, evaluation_every=config.evaluation.every)
        self.progress = RunProgress(console, str(self.root), self.history, config.monitor.overlap_k)
        self.trackers = Trackers(config, console.print)
        self._checkpoints = self.root / "checkpoints"
        self._has_base = needs_reference(config) or bool(config.monitor.every)

    def run(self, *, measure: bool = True) -> None:
        """Train from the newest checkpoint, or the beginning, and print the final results.

        Args:
            measure: Whether to export and evaluate the final models; otherwise the run ends with
                the checkpoint of the last step.
        """
        if finished := self._finished_results():
            self._report(finished)
            return
        self.prepare()
        self._write_settings()
        sent = max((line["step"] for line in read_lines(self.root / "timings.jsonl")), default=0)
        self._drop_uncommitted_lines()
        with self.trackers.opened(sent), self.progress:
            results = retry_lost_branches(
                lambda: self._attempt(measure=measure),
                restart=self._restart,
                progress=lambda: saved_steps(self._checkpoints),
                max_failures=self.config.engine.max_failures,
                report=self.console.print,
            )
        if results:
            self._report(results)

    def prepare(self) -> None:
        """Start the branches; a wrong model or domain raises here, before any file is written."""
        check_installed(self.config.tracking)
        for name in self.plan.branches:
            self.engine.spawn(name, self.config.model.path)
        if self._has_base:
            self.engine.spawn(BASE, self.config.model.path, frozen=True)
        wait_for(self.engine, self.plan.branches)

    def _attempt(self, *, measure: bool) -> Mapping[str, Results]:
        """Run from the newest checkpoint to the end, unless a branch is lost on the way."""
        done, cost = self._restore()
        check_samplers(self.engine, self.config, self.plan.branches)
        if done == 0:
            check_teachers(self.engine, self.config, self.plan)
        base = {BASE: self._base_results(done)} if self.config.evaluation.base else {}
        self._train(done, cost)
        return self._finish(base) if measure else {}

    # Training

    def _train(self, done: int, cost: CostCounts) -> None:
        if done == 0:
            self._maybe_measure_dynamics(0, "start")
        for window in windows(self.config, self.plan, done):
            if self._is_budget_spent(cost):
                break
            positions = positions_of(self.plan, window, read_lines(self.root / "dynamics.jsonl"))
            started = time.perf_counter()
            with closing(take_steps(self.engine, self.config, positions)) as results:
                for position, result in zip(positions, results, strict=True):
                    cost = self._end_step(position, result, cost, started)
                    started = time.perf_counter()

    def _end_step(
        self, position: Position, result: StepResult, cost: CostCounts, started: float
    ) -> CostCounts:
        """Log a step and do what is due after it; return the cost so far."""
        step, stage = position.step, position.stage
        cost = add_step(cost, stage, result.batches)
        is_last = step == self.plan.total_steps or self._is_budget_spent(cost)
        line = {
            "step": step,
            "stage": stage.name,
            "stage_index": position.stage_index,
            "branches": result.metrics,
            "cost": cost,
        }
        append_lines(self.root / "metrics.jsonl", [line])
        append_lines(self.root / "rollouts.jsonl", rollout_records(step, result.batches))
        results = self._maybe_evaluate(step)
        self._maybe_measure_dynamics(step, stage.name, is_last=is_last)
        seconds = round(time.perf_counter() - started, 4)
        append_lines(self.root / "timings.jsonl", [{"step": step, "seconds": seconds}])
        self.progress.advance(line, seconds)
        self.trackers.log(step, step_values(line, seconds, results))
        if is_last or saves(self.config, step):
            settings, branches = self.config.checkpoint, self.plan.branches
            save_checkpoint(self._checkpoints, self.engine, branches, step, cost, settings=settings)
        return cost

    def _is_budget_spent(self, cost: CostCounts) -> bool:
        """Return whether the branches together have sampled `max_tokens`."""
        limit = self.config.max_tokens
        return limit is not None and sum(c["sampled_tokens"] for c in cost.values()) >= limit

    def _maybe_evaluate(self, step: int) -> Mapping[str, Results]:
        if not evaluates(self.config, self.plan, step):
            return {}
        results = self._evaluate("evaluating the branches", self.plan.branches, in_step=True)
        line = {"step": step, "results": to_json(results)}
        append_lines(self.root / "evaluations.jsonl", [line])
        return results

    def _maybe_measure_dynamics(self, step: int, stage: str, *, is_last: bool = False) -> None:
        if self.config.monitor.every and (is_last or measures_dynamics(self.config, step)):
            line = measure_dynamics(self.engine, self.config, self.plan.branches, step, stage)
            append_lines(self.root / "dynamics.jsonl", [line])

    def _evaluate(
        self, title: str, names: Sequence[str], *, split: Split | None = None, in_step: bool = False
    ) -> Mapping[str, Results]:
        """Evaluate branches as a phase of the progress display."""
        with self.progress.phase(title, len(self.config.domains), in_step=in_step) as domain_done:
            return evaluate_branches(
                self.engine, self.config, names, split=split, domain_done=domain_done
            )

    # Checkpointing

    def _write_settings(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / "plan.json", json.dumps(to_dict(self.plan), indent=2))
        write_atomically(self.root / "config.json", self.config.model_dump_json(indent=2))

    def _restore(self) -> tuple[int, CostCounts]:
        """Load the newest checkpoint; return its step and cost."""
        checkpoint = latest_checkpoint(self._checkpoints)
        if checkpoint is None:
            return 0, no_cost(self.plan.branches)
        self.engine.call(Branch.restore, dict.fromkeys(self.plan.branches, checkpoint.folder))
        self.console.print(f"continuing after step {checkpoint.step} of {self.plan.total_steps}")
        return checkpoint.step, checkpoint.cost

    def _restart(self) -> None:
        """Start all branches again after a loss."""
        self.engine.clear()
        self.prepare()
        self._drop_uncommitted_lines()

    def _drop_uncommitted_lines(self) -> None:
        """Drop lines of steps after the newest checkpoint, and read the history from the rest."""
        done = saved_steps(self._checkpoints)
        for name in LINES:
            truncate_lines(self.root / name, lambda record: 0 < done >= record["step"])
        lines = (read_lines(self.root / name) for name in ("metrics.jsonl", "timings.jsonl"))
        self.history.read(*lines)

    # Finishing

    def _base_results(self, done: int) -> Results:
        """Return the results of the base model; evaluate it unless eval.json has them."""
        if stored := self._stored_results():
            return stored[BASE]
        name = BASE if done else self.plan.branches[0]
        is_temporary = bool(done) and not self._has_base
        if is_temporary:
            self.engine.spawn(BASE, self.config.model.path, frozen=True)
        results = self._evaluate("evaluating the base", [name])[name]
        if is_temporary:
            self.engine.drop(BASE)
        write_atomically(self.root / "eval.json", json.dumps(to_json({BASE: results})))
        self.trackers.log_again(0, evaluation_values({BASE: results}))
        return results

    def _finish(self, base: Mapping[str, Results]) -> Mapping[str, Results]:
        """Merge, export and evaluate; return the results of all models."""
        if self.plan.merge:
            self._merge(self.plan.merge)
        final = self.plan.final
        paths = {final: Path()} if final else {name: Path(name) for name in self.plan.branches}
        self._export(self.root / "final", paths, Branch.export)
        if self.config.model.branches == "lora":
            paths = {name: Path(name) for name in self._final_models}
            self._export(self.root / "adapters", paths, Branch.export_adapter)
        trained = self._evaluate("evaluating the trained models", self._final_models)
        results = {**base, **trained}
        write_atomically(self.root / "eval.json", json.dumps(to_json(results)))
        self.trackers.log_again(self.plan.total_steps, evaluation_values(trained))
        return results

    def _merge(self, merge: Merge) -> None:
        def validate(model: str) -> Results:
            title = "trying merge weights"
            return self._evaluate(title, [model], split="validation", in_step=True)[model]

        shares = merge_branches(self.engine, self.config.model, merge, validate)
        record = {"method": merge.method.type, "branches": list(merge.branches), "shares": shares}
        write_atomically(self.root / "merge.json", json.dumps(record, indent=2))
        parts = [f"{shares[name]:.2f} {name}" if shares else name for name in merge.branches]
        self.console.print(f"{merge.into}: {merge.method.type} merge of {', '.join(parts)}")

    def _export(
        self, folder: Path, paths: Mapping[str, Path], method: Callable[[Branch, Path], None]
    ) -> None:
        """Export branches to paths in a folder."""

        def fill(root: Path) -> None:
            self.engine.call(method, {name: root / path for name, path in paths.items()})

        make_folder_atomically(folder, fill)

    @property
    def _final_models(self) -> list[str]:
        """The models that are evaluated at the end."""
        if (final := self.plan.final) is None:
            return list(self.plan.branches)
        branches = self.plan.branches if self.config.evaluation.branches else ()
        return list(dict.fromkeys([*branches, final]))

    def _stored_results(self) -> Mapping[str, Results]:
        """Return what eval.json holds; empty if there is none."""
        path = self.root / "eval.json"
        return from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def _finished_results(self) -> Mapping[str, Results]:
        """Return the results of a finished run; empty for any other."""
        results, base = self._stored_results(), [BASE] if self.config.evaluation.base else []
        return results if set(results) == {*base, *self._final_models} else {}

    def _report(self, results: Mapping[str, Results]) -> None:
        title = "held-out accuracy with 95 % intervals over problems"
        self.console.print(results_table(results, title))
        for model in [self.plan.final] if self.plan.final else self.plan.branches:
            for line in gain_lines(results, model, BASE) if BASE in results else ():
                self.console.print(line)
        for line in [*zero_variance_warnings(self.history), f"final model: {self.root / 'final'}"]:
            self.console.print(line)

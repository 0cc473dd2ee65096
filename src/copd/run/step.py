"""Steps of a plan: every branch samples, every teacher scores, every branch updates once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from copd.branch import Branch
from copd.config import BASE, Config, SampledDistill, TopKDistill, num_problems
from copd.engine import BranchTask, Engine, run_tasks
from copd.recipes import OPD, RLVR, Action, Stage
from copd.run.seeds import derive_seed, draw_problems
from copd.types import (
    Metrics,
    RolloutBatch,
    RolloutRequest,
    ScoreRequest,
    TeacherOutputs,
    TrainingBatch,
    UpdateRequest,
)

Outputs = Mapping[tuple[str, str], Any]
"""What branches have returned so far in a step, by method and branch."""


@dataclass(frozen=True)
class Position:
    """A step of a run and the stage it belongs to."""

    step: int
    """Counted over the whole plan, from 1."""
    stage_index: int
    stage: Stage
    step_in_stage: int = 0
    """Steps of the stage before this one."""

    @property
    def staleness(self) -> int:
        """Steps since teachers took the snapshot that they score with."""
        return self.step_in_stage % (1 + self.stage.max_staleness)

    def __str__(self) -> str:
        return f"stage {self.stage.name} (number {self.stage_index + 1}), step {self.step}"


@dataclass(frozen=True)
class StepResult:
    """The outcome of a step."""

    metrics: Mapping[str, Metrics]
    """Branch to its metrics."""

    batches: Mapping[str, tuple[TrainingBatch, ...]]
    """Branch to its training batches."""


def take_steps(
    engine: Engine, config: Config, positions: Sequence[Position]
) -> Generator[StepResult, None, None]:
    """Take consecutive steps of Algorithm 1.

    All branches sample, then all teachers score, then all branches update: no policy changes while
    it is queried. On a parallel engine nobody waits for more than it needs. A teacher scores as
    soon as it and its students have sampled, a branch updates as soon as its teachers have scored
    and it has scored itself, and then begins its next step. So branches may be ahead of the result
    that is yielded. Teachers that may be stale score with a snapshot of their weights, and do not
    wait with their update.

    Args:
        engine: Where the branches are.
        config: The configuration of the run.
        positions: The steps to take. Close the generator to stop earlier.

    Yields:
        The result of each step, in order.
    """
    steps = [_Step.of(config, position) for position in positions]
    with closing(run_tasks(engine, [step.tasks() for step in steps])) as results:
        for step, outputs in zip(steps, results, strict=True):
            yield step.result(outputs)


def take_step(engine: Engine, config: Config, position: Position) -> StepResult:
    """Take one step."""
    (result,) = take_steps(engine, config, [position])
    return result


@dataclass(frozen=True)
class _Step:
    """The tasks of a step, and which of them need which others."""

    config: Config
    position: Position
    actions: Mapping[str, tuple[Action, ...]]
    """Branch to its actions."""
    scored: Mapping[str, list[OPD]]
    """Teacher to the actions whose batches it scores, in the order of their branches."""

    @classmethod
    def of(cls, config: Config, position: Position) -> _Step:
        actions = {name: position.stage.actions_of(name) for name in position.stage.trained}
        cross = [a for own in actions.values() for a in own if isinstance(a, OPD)]
        scored: dict[str, list[OPD]] = defaultdict(list)
        for action in cross:
            scored[action.teacher].append(action)
        if needs_reference(config) and cross:
            scored[BASE] = cross
        return cls(config, position, actions, dict(scored))

    def tasks(self) -> dict[tuple[str, str], BranchTask]:
        """Return sampling, scoring and update of every branch, with what each needs."""
        tasks: dict[tuple[str, str], BranchTask] = {}
        for name in self.actions:
            tasks["sample", name] = BranchTask(name, Branch.sample, partial(self.sample, name))
        for name in self.actions if self._takes_snapshots else ():
            needs = (("sample", name),)
            tasks["snapshot", name] = BranchTask(
                name, Branch.snapshot, _nothing, needs, is_asynchronous=True
            )
        for name, actions in self.scored.items():
            is_stale = self._is_stale(name)
            needs = tuple(dict.fromkeys(("sample", action.branch) for action in actions))
            method = Branch.score_with_snapshot if is_stale else Branch.score
            request = partial(self.score, name)
            tasks["score", name] = BranchTask(
                name, method, request, needs, is_asynchronous=is_stale
            )
        for name in self.actions:
            teachers = [t for t, own in self.scored.items() if name in {a.branch for a in own}]
            needs = tuple(("score", teacher) for teacher in teachers)
            needs += (("snapshot", name),) if self._takes_snapshots else ()
            tasks["update", name] = BranchTask(
                name, Branch.update, partial(self.update, name), needs
            )
        return tasks

    def sample(self, name: str, _: Outputs) -> list[RolloutRequest]:
        return [_sample_request(self.config, self.position, each) for each in self.actions[name]]

    def score(self, name: str, outputs: Outputs) -> list[ScoreRequest]:
        return [
            _score_request(self.config, self.position, action, self._rollouts(action, outputs))
            for action in self.scored[name]
        ]

    def update(self, name: str, outputs: Outputs) -> UpdateRequest:
        return UpdateRequest(self.batches(name, outputs), str(self.position))

    def result(self, outputs: Outputs) -> StepResult:
        return StepResult(
            {name: {**outputs["update", name], **self._staleness(name)} for name in self.actions},
            {name: self.batches(name, outputs) for name in self.actions},
        )

    @property
    def _takes_snapshots(self) -> bool:
        """Whether branches copy their weights in this step, for it and those after it."""
        return self.position.stage.max_staleness > 0 and self.position.staleness == 0

    def _is_stale(self, teacher: str) -> bool:
        """Return whether a snapshot scores. A teacher that does not train needs none."""
        return self.position.stage.max_staleness > 0 and teacher in self.actions

    def _staleness(self, name: str) -> Metrics:
        """Return the age of each teacher's weights, where they may be stale."""
        stale = [a for a in self.actions[name] if isinstance(a, OPD) and self._is_stale(a.teacher)]
        return {f"{action.key}/staleness": self.position.staleness for action in stale}

    def batches(self, name: str, outputs: Outputs) -> tuple[TrainingBatch, ...]:
        """Return a branch's training batches, with teacher outputs for cross batches."""
        batches = []
        for action in self.actions[name]:
            batch = TrainingBatch(action.domain, self._rollouts(action, outputs))
            if isinstance(action, OPD):
                has_reference = BASE in self.scored
                base = self._outputs_of(BASE, action, outputs) if has_reference else None
                batch = replace(
                    batch,
                    teacher=self._outputs_of(action.teacher, action, outputs),
                    ref_logprobs=base.logprobs if base else None,
                    beta=action.beta,
                )
            batches.append(batch)
        return tuple(batches)

    def _rollouts(self, action: Action, outputs: Outputs) -> RolloutBatch:
        return outputs["sample", action.branch][self.actions[action.branch].index(action)]

    def _outputs_of(self, teacher: str, action: OPD, outputs: Outputs) -> TeacherOutputs:
        return outputs["score", teacher][self.scored[teacher].index(action)]


def _nothing(_: Outputs) -> None:
    """Return the request of a method that takes none."""


def needs_reference(config: Config) -> bool:
    """Return whether the distillation signal needs theta_0's log-probabilities."""
    return isinstance(config.distill, SampledDistill) and config.distill.extrapolation != 1.0


def _sample_request(config: Config, position: Position, action: Action) -> RolloutRequest:
    """Draw a batch's problems and seed.

    Cross batches are sampled at temperature 1: delta compares the policies themselves.
    """
    place = (config.seed, action.branch, action.key)
    problems = draw_problems(
        place,
        action.domain,
        num_problems(config.domains[action.domain], "train"),
        start=(position.step - 1) * config.rollout.num_prompts,
        count=config.rollout.num_prompts,
    )
    is_native = isinstance(action, RLVR)
    return RolloutRequest(
        action=action.key,
        problems=problems,
        temperature=action.temperature or config.rollout.temperature if is_native else 1.0,
        seed=derive_seed(*place, position.stage_index, position.step, "sample"),
        position=str(position),
    )


def _score_request(
    config: Config, position: Position, action: OPD, batch: RolloutBatch
) -> ScoreRequest:
    """Probe a few tokens for diagnostics, or every token where distributions are compared."""
    monitor, distill, num_tokens = config.monitor, config.distill, len(batch.token_ids)
    top_k = monitor.probe_top_k
    if isinstance(distill, SampledDistill) and not distill.control_variate:
        top_k = monitor.score_top_k
        seed = derive_seed(config.seed, action.branch, action.key, position.step, "probe")
        size = min(monitor.num_probe_tokens, num_tokens)
        probes = np.sort(np.random.default_rng(seed).choice(num_tokens, size, replace=False))
    else:
        probes = np.arange(num_tokens)
        if not isinstance(distill, SampledDistill):
            top_k = max(distill.top_k, monitor.overlap_k) if isinstance(distill, TopKDistill) else 0
    return ScoreRequest(
        batch.problems, batch.token_ids, batch.lengths, probes.astype(np.int32), top_k
    )

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
from copd.config import Config, SampledDistill, TopKDistill, num_problems
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
"""By method and branch."""

REFERENCE = "theta_0"
"""The frozen copy of the base that is asked and compared with; no branch may have this name."""


@dataclass(frozen=True)
class Position:
    """Where a run is: the step counted over the whole plan, and its stage."""

    step: int
    stage_index: int
    stage: Stage
    step_in_stage: int = 0
    """Steps of the stage before this one."""

    @property
    def staleness(self) -> int:
        """Steps since the weights that teachers answer with were their own."""
        return self.step_in_stage % (1 + self.stage.max_staleness)

    def __str__(self) -> str:
        return f"stage {self.stage.name} (number {self.stage_index + 1}), step {self.step}"


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind."""

    metrics: Mapping[str, Metrics]
    """Branch to its metrics."""

    lessons: Mapping[str, tuple[TrainingBatch, ...]]
    """Branch to its batches and what teachers said of them."""


def take_steps(
    engine: Engine, config: Config, positions: Sequence[Position]
) -> Generator[StepResult, None, None]:
    """The paper's Algorithm 1, some consecutive steps, one result after another.

    No policy moves while it is being asked (a simultaneous update). Where branches work side by
    side, a teacher scores as soon as it and its students have sampled, a branch updates as soon as
    its teachers have answered and it has, and then begins its next step: when a result is there,
    branches may be further on. Teachers that may be stale are asked by a copy of their weights, and
    do not wait with their update for what they are to score. Close it when you leave early.
    """
    steps = [_Step.of(config, position) for position in positions]
    with closing(run_tasks(engine, [step.tasks() for step in steps])) as found:
        for step, answers in zip(steps, found, strict=True):
            yield step.result(answers)


def take_step(engine: Engine, config: Config, position: Position) -> StepResult:
    """One step alone."""
    (result,) = take_steps(engine, config, [position])
    return result


@dataclass(frozen=True)
class _Step:
    """Who is asked what in a step, and who waits for whom."""

    config: Config
    position: Position
    actions: Mapping[str, tuple[Action, ...]]
    asked: Mapping[str, list[OPD]]
    """Scorer to the actions whose batches it is asked about, in the order of their branches."""

    @classmethod
    def of(cls, config: Config, position: Position) -> _Step:
        actions = {name: position.stage.actions_of(name) for name in position.stage.trained}
        cross = [a for own in actions.values() for a in own if isinstance(a, OPD)]
        asked: dict[str, list[OPD]] = defaultdict(list)
        for action in cross:
            asked[action.teacher].append(action)
        if needs_reference(config) and cross:
            asked[REFERENCE] = cross
        return cls(config, position, actions, dict(asked))

    def tasks(self) -> dict[tuple[str, str], BranchTask]:
        """Sampling, scoring and update of every branch, with what each needs."""
        tasks: dict[tuple[str, str], BranchTask] = {}
        for name in self.actions:
            tasks["sample", name] = BranchTask(name, Branch.sample, partial(self.sample, name))
        for name in self.actions if self._keeps else ():
            needs = (("sample", name),)
            tasks["snapshot", name] = BranchTask(
                name, Branch.snapshot, _nothing, needs, is_asynchronous=True
            )
        for name, about in self.asked.items():
            is_stale = self._is_stale(name)
            needs = tuple(dict.fromkeys(("sample", action.branch) for action in about))
            method = Branch.score_with_snapshot if is_stale else Branch.score
            request = partial(self.score, name)
            tasks["score", name] = BranchTask(
                name, method, request, needs, is_asynchronous=is_stale
            )
        for name in self.actions:
            scorers = [s for s, about in self.asked.items() if name in {a.branch for a in about}]
            needs = tuple(("score", scorer) for scorer in scorers)
            needs += (("snapshot", name),) if self._keeps else ()
            tasks["update", name] = BranchTask(
                name, Branch.update, partial(self.update, name), needs
            )
        return tasks

    def sample(self, name: str, _: Outputs) -> list[RolloutRequest]:
        return [_sample_request(self.config, self.position, each) for each in self.actions[name]]

    def score(self, name: str, answers: Outputs) -> list[ScoreRequest]:
        return [
            _score_request(self.config, self.position, action, self._batch(action, answers))
            for action in self.asked[name]
        ]

    def update(self, name: str, answers: Outputs) -> UpdateRequest:
        return UpdateRequest(self.lessons(name, answers), str(self.position))

    def result(self, answers: Outputs) -> StepResult:
        return StepResult(
            {name: {**answers["update", name], **self._ages(name)} for name in self.actions},
            {name: self.lessons(name, answers) for name in self.actions},
        )

    @property
    def _keeps(self) -> bool:
        """Whether branches copy their weights in this step, for it and those after it."""
        return self.position.stage.max_staleness > 0 and self.position.staleness == 0

    def _is_stale(self, scorer: str) -> bool:
        """Whether a copy is asked; one that does not train is always as it was."""
        return self.position.stage.max_staleness > 0 and scorer in self.actions

    def _ages(self, name: str) -> Metrics:
        """How old the weights of a branch's teachers were, where they may be old."""
        stale = [a for a in self.actions[name] if isinstance(a, OPD) and self._is_stale(a.teacher)]
        return {f"{action.key}/staleness": self.position.staleness for action in stale}

    def lessons(self, name: str, answers: Outputs) -> tuple[TrainingBatch, ...]:
        """A branch's batches, with what was said of the cross batches."""
        lessons = []
        for action in self.actions[name]:
            lesson = TrainingBatch(action.domain, self._batch(action, answers))
            if isinstance(action, OPD):
                base = (
                    self._teacher_outputs(REFERENCE, action, answers)
                    if REFERENCE in self.asked
                    else None
                )
                lesson = replace(
                    lesson,
                    scores=self._teacher_outputs(action.teacher, action, answers),
                    ref_logprobs=base.logprobs if base else None,
                    beta=action.beta,
                )
            lessons.append(lesson)
        return tuple(lessons)

    def _batch(self, action: Action, answers: Outputs) -> RolloutBatch:
        return answers["sample", action.branch][self.actions[action.branch].index(action)]

    def _teacher_outputs(self, scorer: str, action: OPD, answers: Outputs) -> TeacherOutputs:
        return answers["score", scorer][self.asked[scorer].index(action)]


def _nothing(_: Outputs) -> None:
    """For methods that are asked without any."""


def needs_reference(config: Config) -> bool:
    """True when the distillation signal needs theta_0's log-probabilities."""
    return isinstance(config.distill, SampledDistill) and config.distill.extrapolation != 1.0


def _sample_request(config: Config, position: Position, action: Action) -> RolloutRequest:
    """A batch's problems and seed.

    Distillation samples at temperature 1: its signal compares untempered policies.
    """
    place = (config.seed, action.branch, action.key)
    problems = draw_problems(
        place,
        action.domain,
        num_problems(config.domains[action.domain], "train"),
        start=(position.step - 1) * config.rollout.num_prompts,
        count=config.rollout.num_prompts,
    )
    native = isinstance(action, RLVR)
    return RolloutRequest(
        action=action.key,
        problems=problems,
        temperature=action.temperature or config.rollout.temperature if native else 1.0,
        seed=derive_seed(*place, position.stage_index, position.step, "sample"),
        position=str(position),
    )


def _score_request(
    config: Config, position: Position, action: OPD, batch: RolloutBatch
) -> ScoreRequest:
    """A few probed tokens for diagnostics, or every token where distributions are compared."""
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

"""Our side: copd's own step, its methods timed. Changes nothing but completion lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.cases import Case, Shapes, planned_lengths
from benchmarks.lengths import PlannedSampler
from benchmarks.turns import Turns
from copd.branch import Branch
from copd.branch.prompts import PromptCache
from copd.config import Config
from copd.policy import Policy
from copd.recipes import OPD, RLVR, Action, Stage
from copd.run.step import Position, StepResult, take_step
from copd.types import RolloutBatch, ScoreRequest

Input = TypeVar("Input")
Output = TypeVar("Output")

_PHASES = {"sample": "sampling", "score": "scoring", "update": "update"}
LEARNER = "learner"


class TimedEngine:
    """The local engine over benchmark problems; every method is a phase."""

    is_parallel = False

    def __init__(self, case: Case, folder: Path, turns: Turns, micro_batch: int = 0) -> None:
        self.config = build_config(case, folder, micro_batch)
        self._turns = turns
        domains = {name: Shapes(name, case.media) for name in case.domains}
        policies = {name: Policy.load(folder) for name in (LEARNER, *teachers(case))}
        book = PromptCache(domains, policies[LEARNER].render_all)
        self._branches = {n: Branch(n, p, book, self.config) for n, p in policies.items()}
        [end] = policies[LEARNER].end_tokens
        self.plan = PlannedSampler(end, case.lengths[1])
        self.plan.install()

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        raise AssertionError("a benchmark's branches are there from the start")

    def drop(self, name: str) -> None:
        del self._branches[name]

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        with self._turns.phase(_PHASES[method.__name__]):
            return {name: method(self._branches[name], value) for name, value in inputs.items()}

    def clear(self) -> None:
        self._branches.clear()

    def close(self) -> None:
        self.clear()


def teachers(case: Case) -> tuple[str, ...]:
    """Branches besides the learner, named like the domain they teach."""
    return {"grpo": (), "distill": case.domains, "mutual": case.domains[1:]}[case.work]


def build_config(case: Case, folder: Path, micro_batch: int) -> Config:
    """The defaults of a run but for sizes; a group of one is refused there and needs a copy.

    `micro_batch` is in tokens; 0 leaves the default.
    """
    config = Config.model_validate(
        {
            "model": {"path": str(folder), "device": "cpu"},
            "domains": {
                name: {"type": "digits", "modality": Shapes(name, case.media).modality}
                for name in case.domains
            },
            "recipe": {"type": "mixed", "steps": 1},
            "rollout": {
                "num_prompts": case.prompts_per_batch,
                "max_completion_tokens": case.lengths[1],
            },
            "optimizer": {"micro_batch_tokens": micro_batch} if micro_batch else {},
        }
    )
    rollout = config.rollout.model_copy(update={"group_size": case.group_size})
    return config.model_copy(update={"rollout": rollout})


def actions(case: Case) -> tuple[Action, ...]:
    """What one step of the learner is made of."""
    lessons = tuple(OPD(LEARNER, teacher, teacher) for teacher in teachers(case))
    return lessons if case.work == "distill" else (RLVR(LEARNER, case.domains[0]), *lessons)


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int = 0) -> None:
    """A step of a run per turn."""
    turns.model_comes_now()
    engine = TimedEngine(case, folder, turns, micro_batch)
    stage = Stage("measured", 1, actions(case))
    turns.ready()
    while turns.next():
        engine.plan.plan(planned_lengths(case, turns.step))
        result = take_step(engine, engine.config, Position(turns.step + 1, 0, stage))
        _check(case, turns, _batches(result), planned_lengths(case, turns.step))


def take_turns_in_parts(case: Case, folder: Path, turns: Turns) -> None:
    """What a mutual step is made of, done separately.

    An RLVR step on either domain, then the teacher's pass over the second batch. The caller
    subtracts one of the two optimizer updates: a mutual step makes one.
    """
    turns.model_comes_now()
    engine = TimedEngine(case, folder, turns)
    stages = [Stage("measured", 1, (RLVR(LEARNER, domain),)) for domain in case.domains]
    turns.ready()
    while turns.next():
        plan = np.split(planned_lengths(case, turns.step), len(stages))
        batches: list[RolloutBatch] = []
        for stage, lengths in zip(stages, plan, strict=True):
            engine.plan.plan(lengths)
            result = take_step(engine, engine.config, Position(turns.step + 1, 0, stage))
            batches += _batches(result)
        request = _score_request(engine.config, batches[-1])
        engine.call(Branch.score, {teacher: [request] for teacher in teachers(case)})
        _check(case, turns, batches, np.concatenate(plan))


def _score_request(config: Config, batch: RolloutBatch) -> ScoreRequest:
    """As many probes as a step asks for."""
    size = min(config.monitor.num_probe_tokens, len(batch.token_ids))
    probes = np.linspace(0, len(batch.token_ids) - 1, size).astype(np.int32)
    top_k = config.monitor.score_top_k
    return ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, top_k)


def _batches(result: StepResult) -> list[RolloutBatch]:
    return [lesson.batch for lesson in result.lessons[LEARNER]]


def _check(case: Case, turns: Turns, batches: list[RolloutBatch], planned: np.ndarray) -> None:
    lengths = np.concatenate([batch.lengths for batch in batches])
    assert (lengths == planned).all(), f"{case.name}: sampled lengths are not the planned ones"
    turns.sampled(int(lengths.sum()))

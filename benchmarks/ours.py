"""Our side: copd's own step with timed methods, changed only in the completion lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import Case, Shapes, planned_lengths
from benchmarks.lengths import PlannedSampler
from benchmarks.turns import Turns
from copd.branch import Branch
from copd.config import Config
from copd.engine import LocalEngine
from copd.policy.rendering.render import load_renderer
from copd.recipes import OPD, RLVR, Action, Stage
from copd.run.step import Position, StepResult, take_step
from copd.types import RolloutBatch, ScoreRequest

Input = TypeVar("Input")
Output = TypeVar("Output")

_PHASES = {"sample": "sampling", "score": "scoring", "update": "update"}
LEARNER = "learner"


class TimedEngine(LocalEngine):
    """The local engine over benchmark problems; every method is a phase."""

    def __init__(self, case: Case, folder: Path, turns: Turns, micro_batch: int = 0) -> None:
        self.config = build_config(case, folder, micro_batch)
        super().__init__(self.config)
        self._turns = turns
        self._domains = {name: Shapes(name, case.media) for name in case.domains}
        for name in (LEARNER, *teachers(case)):
            self.spawn(name, str(folder))
        end = load_renderer(str(folder)).tokenizer.eos_token_id
        assert isinstance(end, int), "the miniature has one end token"
        self.plan = PlannedSampler(end, case.lengths[1])
        self.plan.install()

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        with self._turns.phase(_PHASES[method.__name__]):
            return super().call(method, inputs)


def teachers(case: Case) -> tuple[str, ...]:
    """Return the branches besides the learner, named like the domain they teach."""
    return {"grpo": (), "distill": case.domains, "mutual": case.domains[1:]}[case.work]


def build_config(case: Case, folder: Path, micro_batch: int, **model: str) -> Config:
    """Return the default configuration with the sizes of a case.

    `micro_batch` is in tokens; 0 keeps the default. A group of one is set without validation, which
    refuses it.
    """
    modality = Shapes("", case.media).modality
    config = Config.model_validate(
        {
            "model": {"path": str(folder), "device": "cpu", **model},
            "domains": {name: {"type": "digits", "modality": modality} for name in case.domains},
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
    """Return the actions of one step of the learner."""
    cross = tuple(OPD(LEARNER, teacher, teacher) for teacher in teachers(case))
    return cross if case.work == "distill" else (RLVR(LEARNER, case.domains[0]), *cross)


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int = 0) -> None:
    """Take a step of a run per turn."""
    turns.start_memory()
    engine = TimedEngine(case, folder, turns, micro_batch)
    stage = Stage("measured", 1, actions(case))
    turns.ready()
    while turns.next():
        planned = planned_lengths(case, turns.step)
        _check(case, turns, _step(engine, turns, stage, planned), planned)


def take_turns_in_parts(case: Case, folder: Path, turns: Turns, *, micro_batch: int = 0) -> None:
    """Do the parts of a mutual step separately.

    They are an RLVR step on either domain, then the teacher's pass over the second batch. The
    caller subtracts one of the two optimizer updates, as a mutual step makes one.
    """
    turns.start_memory()
    engine = TimedEngine(case, folder, turns, micro_batch)
    stages = [Stage("measured", 1, (RLVR(LEARNER, domain),)) for domain in case.domains]
    turns.ready()
    while turns.next():
        planned, batches = planned_lengths(case, turns.step), []
        for stage, lengths in zip(stages, np.split(planned, len(stages)), strict=True):
            batches += _step(engine, turns, stage, lengths)
        request = _score_request(engine.config, batches[-1])
        engine.call(Branch.score, {teacher: [request] for teacher in teachers(case)})
        _check(case, turns, batches, planned)


def _step(
    engine: TimedEngine, turns: Turns, stage: Stage, lengths: NDArray[np.int64]
) -> list[RolloutBatch]:
    engine.plan.plan(lengths)
    result: StepResult = take_step(engine, engine.config, Position(turns.step + 1, 0, stage))
    return [batch.rollouts for batch in result.batches[LEARNER]]


def _score_request(config: Config, batch: RolloutBatch) -> ScoreRequest:
    """Return a request with as many probes as a step has."""
    size = min(config.monitor.num_probe_tokens, len(batch.token_ids))
    probes = np.linspace(0, len(batch.token_ids) - 1, size).astype(np.int32)
    top_k = config.monitor.score_top_k
    return ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, top_k)


def _check(
    case: Case, turns: Turns, batches: list[RolloutBatch], planned: NDArray[np.int64]
) -> None:
    lengths = np.concatenate([batch.lengths for batch in batches])
    assert (lengths == planned).all(), f"{case.name}: sampled lengths are not the planned ones"
    turns.sampled(int(lengths.sum()))

"""One step of a plan: every branch samples, every teacher scores, every branch updates once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from copd.branch import Branch
from copd.config import Config, SampledDistill, TopKDistill, num_problems
from copd.engine import Engine
from copd.recipes import OPD, RLVR, Action, Stage
from copd.run.seeds import derive_seed, draw_problems
from copd.types import Batch, Lesson, Metrics, SampleRequest, ScoreRequest, Scores, UpdateRequest

REFERENCE = "theta_0"
"""The frozen copy of the base that is asked and compared with; no branch may have this name."""


@dataclass(frozen=True)
class Position:
    """Where a run is: the step counted over the whole plan, and its stage."""

    step: int
    stage_index: int
    stage: Stage

    def __str__(self) -> str:
        return f"stage {self.stage.name} (number {self.stage_index + 1}), step {self.step}"


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind."""

    metrics: Mapping[str, Metrics]
    """Branch to its metrics."""

    lessons: Mapping[str, tuple[Lesson, ...]]
    """Branch to its batches and what teachers said of them."""


def take_step(engine: Engine, config: Config, position: Position) -> StepResult:
    """The paper's Algorithm 1, one step.

    No policy moves while it is being asked (a simultaneous update).
    """
    actions = {name: position.stage.actions_of(name) for name in position.stage.trained}
    wanted = {
        name: [_sample_request(config, position, a) for a in own] for name, own in actions.items()
    }
    batches = engine.each(Branch.sample, wanted)

    scores = _score(engine, config, position, actions, batches, lambda action: action.teacher)
    base: dict[tuple[str, str], Scores] = {}
    if asks_base(config):
        base = _score(engine, config, position, actions, batches, lambda _: REFERENCE)

    lessons = {
        name: tuple(
            Lesson(
                domain=action.domain,
                batch=batch,
                scores=scores.get((name, action.key)),
                ref_logprobs=base[name, action.key].logprobs
                if (name, action.key) in base
                else None,
                beta=action.beta if isinstance(action, OPD) else 1.0,
            )
            for action, batch in zip(own, batches[name], strict=True)
        )
        for name, own in actions.items()
    }
    requests = {name: UpdateRequest(own, str(position)) for name, own in lessons.items()}
    return StepResult(engine.each(Branch.update, requests), lessons)


def asks_base(config: Config) -> bool:
    """True when the distillation signal needs theta_0's log-probabilities."""
    return isinstance(config.distill, SampledDistill) and config.distill.extrapolation != 1.0


def _sample_request(config: Config, position: Position, action: Action) -> SampleRequest:
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
    return SampleRequest(
        action=action.key,
        problems=problems,
        temperature=action.temperature or config.rollout.temperature if native else 1.0,
        seed=derive_seed(*place, position.stage_index, position.step, "sample"),
        position=str(position),
    )


def _score(
    engine: Engine,
    config: Config,
    position: Position,
    actions: Mapping[str, tuple[Action, ...]],
    batches: Mapping[str, list[Batch]],
    scorer: Callable[[OPD], str],
) -> dict[tuple[str, str], Scores]:
    """Asks each cross batch's scorer about it; the answers by (student, action key)."""
    asked: dict[str, list[ScoreRequest]] = defaultdict(list)
    owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, own in actions.items():
        for action, batch in zip(own, batches[name], strict=True):
            if isinstance(action, OPD):
                asked[scorer(action)].append(_score_request(config, position, action, batch))
                owners[scorer(action)].append((name, action.key))
    answers = engine.each(Branch.score, asked)
    return {
        owner: answer
        for name, given in answers.items()
        for owner, answer in zip(owners[name], given, strict=True)
    }


def _score_request(config: Config, position: Position, action: OPD, batch: Batch) -> ScoreRequest:
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

"""Before the first step all branches are equal, so what a teacher must say is known: checks that it
says it, and that whoever samples says what the policy would."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from copd.branch import Branch, SamplerCheck
from copd.config import Config, num_problems
from copd.engine import Engine
from copd.recipes import OPD, Plan
from copd.run.seeds import derive_seed
from copd.types import ProblemId, RolloutRequest, ScoreRequest

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""|log-probability difference| of two branches with the same weights, at most: of every token in
float32, on average in bfloat16. There a deep model's single improbable tokens are off by more; what
is misaligned is off by nats on average."""


def check_samplers(engine: Engine, config: Config, branches: Sequence[str]) -> None:
    """A sampler that is not the policy must give the policy's log-probabilities, in every domain,
    and still do so after a change of weights.

    Catches other pixels or positions, masks and temperatures that are applied elsewhere, weights
    that were not handed over, and what was kept of older ones.
    """
    if config.rollout.sampler == "internal":
        return
    requests = [
        RolloutRequest(
            "preflight",
            _first_problems(config, domain),
            config.rollout.temperature,
            derive_seed(config.seed, domain, "sampler"),
            "the check",
        )
        for domain in config.domains
    ]
    found = engine.call(Branch.check_sampler, dict.fromkeys(branches, requests))
    for name, checks in found.items():
        for domain, check in zip(config.domains, checks, strict=True):
            where = f"{config.rollout.sampler} for branch {name!r} on domain {domain!r}"
            require_agreement(check, config.rollout.vllm.tolerance, where)


def require_agreement(check: SamplerCheck, tolerance: float, where: str) -> None:
    """Refuses a sampler that is further from its policy, or that follows it worse, than that."""
    if not check.gap.mean <= tolerance:
        worst = check.gap
        raise ValueError(
            f"{where} must be within {tolerance:g} nats of the policy's log-probabilities on "
            f"average: got {worst.mean:.2g}, most at token {worst.token} of completion "
            f"{worst.completion} of {worst.problem.split} problem {worst.problem.index}, where it "
            f"says {worst.sampler:.3f} and the policy {worst.policy:.3f}. "
            'Use rollout.sampler = "internal", or report the model.'
        )
    if not check.moved.mean <= min(tolerance, check.stale / 2):
        raise ValueError(
            f"{where} does not follow the policy: after a change of weights its log-probabilities "
            f"are {check.moved.mean:.2g} nats from the policy's and {check.stale:.2g} from those "
            'of the weights before. Use rollout.sampler = "internal", or report the model.'
        )


def check_teachers(engine: Engine, config: Config, plan: Plan) -> None:
    """Each student samples a few completions per teacher; the equal teacher must give them the
    student's own numbers.

    Catches misaligned tokens (media expanded on one side only), a teacher in training mode, and one
    that answers with a uniform distribution.
    """
    pairs = {
        (a.branch, a.teacher, a.domain)
        for s in plan.stages
        for a in s.actions
        if isinstance(a, OPD)
    }
    for student, teacher, domain in sorted(pairs):
        problems = _first_problems(config, domain)
        seed = derive_seed(config.seed, student, teacher, domain, "preflight")
        request = RolloutRequest("preflight", problems, 1.0, seed, "the check")
        [batch] = engine.call(Branch.sample, {student: [request]})[student]
        probes = np.arange(1, dtype=np.int32)
        question = ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, 1)
        [first] = engine.call(Branch.score, {teacher: [question]})[teacher]
        [again] = engine.call(Branch.score, {teacher: [question]})[teacher]
        where = f"branch {teacher!r} as a teacher of {student!r} on domain {domain!r}"
        _require(
            bool((first.logprobs == again.logprobs).all()),
            where,
            "scores the same tokens differently twice",
        )
        apart = np.abs(first.logprobs - batch.logprobs)
        is_own, dtype = config.rollout.sampler == "internal", config.model.dtype
        gap = float(apart.max() if is_own and dtype == "float32" else apart.mean())
        _require(
            gap <= (TOLERANCE[dtype] if is_own else config.rollout.vllm.tolerance),
            where,
            f"disagrees by {gap:.2g} nats with a student of the same weights",
        )
        _require(
            float(np.ptp(first.logprobs)) > 1e-6, where, "gives every token the same probability"
        )


def _first_problems(config: Config, domain: str) -> tuple[ProblemId, ...]:
    count = min(2, num_problems(config.domains[domain], "train"))
    return tuple(ProblemId(domain, "train", index) for index in range(count))


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ValueError(
            f"{where} {what}: distillation would learn from noise. "
            "Check the model's chat template and processor; if they are its own, report the model."
        )

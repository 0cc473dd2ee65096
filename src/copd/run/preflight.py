"""Checks before the first step: equal branches must agree, and samplers with their policies."""

from collections.abc import Sequence

import numpy as np

from copd.branch import Branch, SamplerCheck
from copd.config import Config, num_problems
from copd.engine import Engine
from copd.recipes import OPD, Plan
from copd.run.seeds import derive_seed
from copd.types import ProblemId, RolloutRequest, ScoreRequest

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest |log-probability difference| of two branches with the same weights: of any token in
float32, on average in bfloat16, where single improbable tokens of a deep model differ by more.
Misalignment shows as nats on average."""


def check_samplers(engine: Engine, config: Config, branches: Sequence[str]) -> None:
    """Check that external samplers give their policies' log-probabilities in every domain.

    They must do so before and after a change of weights. This catches other pixels or positions,
    masks and temperatures applied elsewhere, weights that were not synced, and stale caches.
    """
    if config.rollout.sampler == "internal":
        return
    requests = [
        _request(config, domain, config.rollout.temperature, domain, "sampler")
        for domain in config.domains
    ]
    outputs = engine.call(Branch.check_sampler, dict.fromkeys(branches, requests))
    for name, checks in outputs.items():
        for domain, check in zip(config.domains, checks, strict=True):
            where = f"{config.rollout.sampler} for branch {name!r} on domain {domain!r}"
            require_agreement(check, config.rollout.vllm.tolerance, where)


def require_agreement(check: SamplerCheck, tolerance: float, where: str) -> None:
    """Raise if a sampler differs from its policy by more than `tolerance` nats, or lags behind."""
    if not check.initial.mean <= tolerance:
        worst = check.initial
        raise ValueError(
            f"{where} must be within {tolerance:g} nats of the policy's log-probabilities on "
            f"average: got {worst.mean:.2g}, most at token {worst.token} of completion "
            f"{worst.completion} of {worst.problem.split} problem {worst.problem.index}, where it "
            f"says {worst.sampler:.3f} and the policy {worst.policy:.3f}. "
            'Use rollout.sampler = "internal", or report the model.'
        )
    if not check.changed.mean <= min(tolerance, check.stale / 2):
        raise ValueError(
            f"{where} does not follow the policy: after a change of weights its log-probabilities "
            f"are {check.changed.mean:.2g} nats from the policy's and {check.stale:.2g} from those "
            'of the weights before. Use rollout.sampler = "internal", or report the model.'
        )


def check_teachers(engine: Engine, config: Config, plan: Plan) -> None:
    """Check that every teacher, equal to its student so far, gives the student's numbers.

    Each student samples a few completions per teacher. This catches misaligned tokens (media
    expanded on one side only), a teacher in training mode, and one with a uniform distribution.
    """
    actions = [a for stage in plan.stages for a in stage.actions if isinstance(a, OPD)]
    is_own, dtype = config.rollout.sampler == "internal", config.model.dtype
    tolerance = TOLERANCE[dtype] if is_own else config.rollout.vllm.tolerance
    for student, teacher, domain in sorted({(a.branch, a.teacher, a.domain) for a in actions}):
        request = _request(config, domain, 1.0, student, teacher, domain, "preflight")
        [batch] = engine.call(Branch.sample, {student: [request]})[student]
        probes = np.arange(1, dtype=np.int32)
        scored = ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, 1)
        first, again = (
            engine.call(Branch.score, {teacher: [scored]})[teacher][0].logprobs for _ in range(2)
        )
        difference = np.abs(first - batch.logprobs)
        gap = float(difference.max() if is_own and dtype == "float32" else difference.mean())
        problem = None
        if not (first == again).all():
            problem = "scores the same tokens differently twice"
        elif not gap <= tolerance:
            problem = f"disagrees by {gap:.2g} nats with a student of the same weights"
        elif not np.ptp(first) > 1e-6:
            problem = "gives every token the same probability"
        if problem:
            raise ValueError(
                f"branch {teacher!r} as a teacher of {student!r} on domain {domain!r} {problem}: "
                "distillation would learn from noise. Check the model's chat template and "
                "processor; if they are its own, report the model."
            )


def _request(config: Config, domain: str, temperature: float, *place: str) -> RolloutRequest:
    """Build a request for the first two training problems, seeded by its place."""
    count = min(2, num_problems(config.domains[domain], "train"))
    problems = tuple(ProblemId(domain, "train", index) for index in range(count))
    seed = derive_seed(config.seed, *place)
    return RolloutRequest("preflight", problems, temperature, seed, "the check")

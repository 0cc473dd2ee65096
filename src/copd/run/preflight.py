"""Before the first step all branches are equal, so what a teacher must say is known: checks that it
says it."""

from __future__ import annotations

import numpy as np

from copd.branch import Branch
from copd.config import Config, num_problems
from copd.engine import Engine
from copd.recipes import OPD, Plan
from copd.run.seeds import derive_seed
from copd.types import ProblemId, SampleRequest, ScoreRequest

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
"""|log-probability difference| of two branches with the same weights, at most: of every token in
float32, on average in bfloat16. There a deep model's single improbable tokens are off by more; what
is misaligned is off by nats on average."""


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
        problems = tuple(
            ProblemId(domain, "train", i)
            for i in range(min(2, num_problems(config.domains[domain], "train")))
        )
        seed = derive_seed(config.seed, student, teacher, domain, "preflight")
        request = SampleRequest("preflight", problems, 1.0, seed, "the check")
        [batch] = engine.each(Branch.sample, {student: [request]})[student]
        probes = np.arange(1, dtype=np.int32)
        question = ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, 1)
        [first] = engine.each(Branch.score, {teacher: [question]})[teacher]
        [again] = engine.each(Branch.score, {teacher: [question]})[teacher]
        where = f"branch {teacher!r} as a teacher of {student!r} on domain {domain!r}"
        _require(
            bool((first.logprobs == again.logprobs).all()),
            where,
            "scores the same tokens differently twice",
        )
        apart = np.abs(first.logprobs - batch.logprobs)
        gap = float(apart.max() if config.model.dtype == "float32" else apart.mean())
        _require(
            gap <= TOLERANCE[config.model.dtype],
            where,
            f"disagrees by {gap:.2g} nats with a student of the same weights",
        )
        _require(
            float(np.ptp(first.logprobs)) > 1e-6, where, "gives every token the same probability"
        )


def _require(holds: bool, where: str, what: str) -> None:
    if not holds:
        raise ValueError(
            f"{where} {what}: distillation would learn from noise. "
            "Check the model's chat template and processor; if they are its own, report the model."
        )

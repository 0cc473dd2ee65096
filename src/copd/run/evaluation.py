"""From rewards of held-out problems to accuracies with intervals, differences and the table a run
ends with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from copd.branch import Branch
from copd.branch.rollouts import join_evaluations
from copd.config import Config, EvaluationConfig, num_problems
from copd.engine import Engine
from copd.monitor.results import DomainResult, pass_at_k
from copd.recipes import Plan
from copd.run.seeds import derive_seed
from copd.types import EvaluationRequest, EvaluationRollouts, Split

_CHUNK = 512
"""Problems built and held at once."""


def evaluate(
    engine: Engine,
    config: Config,
    branches: Sequence[str],
    *,
    split: Split | None = None,
    domain_done: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, DomainResult]]:
    """Every named branch on every domain; the same problems and the same seeds for all of them.

    Of `config.evaluation.split`, unless another one is named. Piece by piece, all branches on one
    before the next: a problem is built once for all, and memory does not grow with their number.
    """
    results: dict[str, dict[str, DomainResult]] = {name: {} for name in branches}
    for domain in config.domains:
        request = evaluation_request(config, domain, split or config.evaluation.split)
        answers = [
            engine.call(Branch.evaluate, dict.fromkeys(branches, shard))
            for shard in _shards(request)
        ]
        for name in branches:
            results[name][domain] = domain_result(
                join_evaluations([found[name] for found in answers])
            )
        domain_done()
    return results


def _shards(request: EvaluationRequest) -> list[EvaluationRequest]:
    ends = [*range(_CHUNK, request.num_problems, _CHUNK), request.num_problems]
    return [
        replace(request, shard=(first, end))
        for first, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def measured_models(plan: Plan, settings: EvaluationConfig) -> list[str]:
    """The models that a run ends with, as far as they are measured; the final one last."""
    branches = plan.branches if settings.branches or plan.final is None else ()
    return list(dict.fromkeys([*branches, *([plan.final] if plan.final else [])]))


def evaluation_request(config: Config, domain: str, split: Split) -> EvaluationRequest:
    """What `config.evaluation` says, cut to the problems the split has."""
    settings, section = config.evaluation, config.domains[domain]
    return EvaluationRequest(
        domain=domain,
        split=split,
        num_problems=min(settings.num_problems, num_problems(section, split)),
        num_samples=settings.num_samples,
        temperature=settings.temperature,
        max_completion_tokens=settings.max_completion_tokens
        or config.rollout.max_completion_tokens,
        seed=derive_seed(config.seed, domain, split, "evaluate"),
    )


def domain_result(answers: EvaluationRollouts) -> DomainResult:
    """Keeps what later questions need: accuracy and pass per problem."""
    correct = answers.rewards >= 1.0
    return DomainResult(
        suites=answers.suites,
        accuracy=tuple(correct.mean(axis=1).tolist()),
        solved=tuple(pass_at_k(correct, correct.shape[1]).tolist()),
        length=float(answers.lengths.mean()),
    )

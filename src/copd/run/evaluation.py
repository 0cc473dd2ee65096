"""Evaluation of branches on held-out problems."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from copd.branch import Branch
from copd.branch.rollouts import join_evaluations
from copd.config import Config, num_problems
from copd.engine import Engine
from copd.monitor.results import DomainResult, Results, pass_at_k
from copd.run.seeds import derive_seed
from copd.types import EvaluationRequest, EvaluationRollouts, Split

_CHUNK = 512
"""Problems that are built and held at a time."""


def evaluate_branches(
    engine: Engine,
    config: Config,
    branches: Sequence[str],
    *,
    split: Split | None = None,
    domain_done: Callable[[], None] = lambda: None,
) -> Mapping[str, Results]:
    """Evaluate branches on every domain, with the same problems and seeds for all of them.

    The split is `config.evaluation.split` unless given. All branches share the problems of a chunk,
    which bounds the memory; `domain_done` is called after each domain.
    """
    results: dict[str, dict[str, DomainResult]] = {name: {} for name in branches}
    for domain in config.domains:
        request = evaluation_request(config, domain, split or config.evaluation.split)
        chunks = [
            engine.call(Branch.evaluate, dict.fromkeys(branches, replace(request, shard=shard)))
            for shard in _shards(request.num_problems)
        ]
        for name in branches:
            rollouts = join_evaluations([chunk[name] for chunk in chunks])
            results[name][domain] = domain_result(rollouts)
        domain_done()
    return results


def _shards(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK)]


def evaluation_request(config: Config, domain: str, split: Split) -> EvaluationRequest:
    """Build the request that `config.evaluation` describes, cut to the problems of the split."""
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


def domain_result(rollouts: EvaluationRollouts) -> DomainResult:
    """Reduce rewards to accuracy and pass@k per problem."""
    correct = rollouts.rewards >= 1.0
    return DomainResult(
        suites=rollouts.suites,
        accuracy=tuple(correct.mean(axis=1).tolist()),
        solved=tuple(pass_at_k(correct, correct.shape[1]).tolist()),
        length=float(rollouts.lengths.mean()),
    )

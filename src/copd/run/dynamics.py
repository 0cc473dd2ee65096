"""The agreement of all branches and the base with each other, on the branches' own completions."""

from collections.abc import Mapping, Sequence
from typing import Any

from copd.branch import Branch
from copd.config import BASE, Config, num_problems
from copd.engine import Engine
from copd.run.seeds import derive_seed
from copd.types import Agreement, ProblemId, RolloutRequest

_SELF_AGREEMENT = Agreement(overlap=1.0, symmetric_kl=0.0)


def measure_dynamics(
    engine: Engine, config: Config, branches: Sequence[str], step: int, stage: str
) -> dict[str, Any]:
    """Return a line of dynamics.jsonl: in row i, column j, how model j agrees with model i.

    Every branch samples the first validation problems of every domain; all other branches and the
    base are compared on its completions. The base samples nothing, so its row is empty.
    """
    domains = tuple(config.domains)
    requests = [_probe_request(config, domain, f"stage {stage}, step {step}") for domain in domains]
    rollouts = engine.call(Branch.probe, dict.fromkeys(branches, requests))
    others = {judge: [n for n in branches if n != judge] for judge in (*branches, BASE)}
    inputs = {
        judge: [[rollouts[name][index] for name in names] for index in range(len(domains))]
        for judge, names in others.items()
        if names
    }
    agreements = {
        (domain, name, judge): agreement
        for judge, output in engine.call(Branch.measure_agreement, inputs).items()
        for domain, of_domain in zip(domains, output, strict=True)
        for name, agreement in zip(others[judge], of_domain, strict=True)
    }
    entropies = {name: [probe.entropy for probe in own] for name, own in rollouts.items()}
    return {
        "step": step,
        "stage": stage,
        "models": [*branches, BASE],
        "domains": {
            domain: {
                **_matrices(branches, domain, agreements),
                "entropy": [*(entropies[name][index] for name in branches), None],
            }
            for index, domain in enumerate(domains)
        },
    }


def _probe_request(config: Config, domain: str, position: str) -> RolloutRequest:
    """Build the same request for all steps and branches.

    Changes from line to line then come from the policies, not from the draw.
    """
    count = min(config.monitor.num_problems, num_problems(config.domains[domain], "validation"))
    return RolloutRequest(
        action="dynamics",
        problems=tuple(ProblemId(domain, "validation", index) for index in range(count)),
        temperature=1.0,
        seed=derive_seed(config.seed, domain, "dynamics"),
        position=position,
    )


def _matrices(
    branches: Sequence[str], domain: str, agreements: Mapping[tuple[str, str, str], Agreement]
) -> dict[str, Any]:
    rows = [
        [
            _SELF_AGREEMENT if row == column else agreements[domain, row, column]
            for column in (*branches, BASE)
        ]
        for row in branches
    ]
    empty = [None] * (len(branches) + 1)
    return {
        "overlap": [*([cell.overlap for cell in row] for row in rows), empty],
        "symmetric_kl": [*([cell.symmetric_kl for cell in row] for row in rows), empty],
    }

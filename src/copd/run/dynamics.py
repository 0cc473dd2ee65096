"""How far all branches and the base are from one another, on the branches' own completions.

Measures and changes nothing; knows no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from copd.branch import Branch
from copd.config import BASE, Config, num_problems
from copd.engine import Engine
from copd.run.seeds import derive_seed
from copd.run.step import REFERENCE
from copd.types import Agreement, ProbeRollouts, ProblemId, RolloutRequest

_ITSELF = Agreement(overlap=1.0, symmetric_kl=0.0)


def measure(
    engine: Engine, config: Config, branches: Sequence[str], step: int, stage: str
) -> dict[str, Any]:
    """A line of dynamics.jsonl: row i has the completions of model i, column j is compared there.

    Every branch answers the first validation problems of every domain; every other branch and the
    base then say how like it they are. The base answers nothing, so its row is empty.
    """
    domains = tuple(config.domains)
    requests = [_request(config, domain, f"stage {stage}, step {step}") for domain in domains]
    portraits = engine.call(Branch.probe, dict.fromkeys(branches, requests))
    asked = {
        judge: [list(of_domain.values()) for of_domain in _others(portraits, judge)]
        for judge in (*branches, REFERENCE)
        if set(branches) - {judge}
    }
    answers = engine.call(Branch.measure_agreement, asked)
    likenesses: list[dict[tuple[str, str], Agreement]] = [{} for _ in domains]
    for judge, said in answers.items():
        for found, others, answer in zip(likenesses, _others(portraits, judge), said, strict=True):
            found |= {(name, judge): a for name, a in zip(others, answer, strict=True)}
    own = zip(*portraits.values(), strict=True)
    return {
        "step": step,
        "stage": stage,
        "models": [*branches, BASE],
        "domains": {
            domain: _matrices(branches, found, [portrait.entropy for portrait in of_domain])
            for domain, found, of_domain in zip(domains, likenesses, own, strict=True)
        },
    }


def _request(config: Config, domain: str, position: str) -> RolloutRequest:
    """The same problems and the same seed at all times and for all branches.

    A change from line to line is then one of the policies, not of the draw.
    """
    count = min(config.monitor.num_problems, num_problems(config.domains[domain], "validation"))
    return RolloutRequest(
        action="dynamics",
        problems=tuple(ProblemId(domain, "validation", index) for index in range(count)),
        temperature=1.0,
        seed=derive_seed(config.seed, domain, "dynamics"),
        position=position,
    )


def _others(
    portraits: Mapping[str, Sequence[ProbeRollouts]], judge: str
) -> list[dict[str, ProbeRollouts]]:
    """What a model is compared with, a table per domain: every branch's portrait but its own."""
    names = [name for name in portraits if name != judge]
    return [
        dict(zip(names, of_domain, strict=True))
        for of_domain in zip(*(portraits[name] for name in names), strict=True)
    ]


def _matrices(
    branches: Sequence[str],
    likenesses: Mapping[tuple[str, str], Agreement],
    entropies: Sequence[float],
) -> dict[str, Any]:
    """One domain's numbers as rows of plain values, None where nothing was measured."""
    rows = [
        [_ITSELF if row == column else likenesses[row, column] for column in (*branches, REFERENCE)]
        for row in branches
    ]
    nothing = [None] * (len(branches) + 1)
    return {
        "overlap": [*([cell.overlap for cell in row] for row in rows), nothing],
        "symmetric_kl": [*([cell.symmetric_kl for cell in row] for row in rows), nothing],
        "entropy": [*entropies, None],
    }

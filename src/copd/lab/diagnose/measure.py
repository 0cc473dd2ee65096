"""Asks a student and a teacher what they do on the student's rollouts. Trains none, judges none.

Each lives in its own engine, so that each reads the problems as it is used to: its own chat
template, its own processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from copd.branch import Branch
from copd.config import Config, num_problems
from copd.domains import with_sizes
from copd.engine import Engine, create_engine
from copd.lab.diagnose.findings import (
    Diagnosis,
    DomainDiagnosis,
    GroupMeasurement,
    accuracies,
    by_position,
    by_suite,
    measure,
    probed_tokens,
)
from copd.lab.diagnose.verdict import judge
from copd.policy import Vocabulary, require_same
from copd.run.evaluation import domain_result, evaluate, evaluation_request
from copd.types import ProbeRollouts, ProblemId, RolloutRequest, Split, TokenDivergence

MAX_PROBES = 16_384
"""Tokens per domain at which distributions are compared; of longer rollouts a random choice."""


def run_diagnosis(
    student: str, teacher: str, config: Config, *, split: Split, say: Callable[[str], None]
) -> Diagnosis:
    """On the domains of a configuration from `settled`, as its evaluation section says."""
    engines: dict[str, Engine] = {}
    try:
        vocabularies: list[Vocabulary] = []
        for role, model in (("student", student), ("teacher", teacher)):
            say(f"loading the {role}, {model}")
            engines[role] = create_engine(config)
            engines[role].spawn(role, model, frozen=True)
            vocabularies.append(engines[role].call(Branch.vocabulary, {role: None})[role])
        require_same(*vocabularies)
        found = {}
        for name in config.domains:
            say(f"domain {name}: rollouts of both")
            alone = config.model_copy(update={"domains": {name: config.domains[name]}})
            found[name] = _diagnose_domain(engines, alone, name, split, vocabularies[0])
    finally:
        for engine in engines.values():
            engine.close()
    return Diagnosis(
        student=student,
        teacher=teacher,
        overlap_k=config.monitor.overlap_k,
        split=split,
        seed=config.seed,
        num_samples=config.evaluation.num_samples,
        domains=found,
    )


def settled(
    config: Config,
    *,
    domains: Sequence[str],
    split: Split,
    count: int | None,
    num_samples: int,
    say: Callable[[str], None],
) -> Config:
    """The configuration of a diagnosis: whole models at temperature 1, on some of the domains.

    Without a `count` at most 100 problems per domain are taken.
    """
    for name in domains:
        if name not in config.domains:
            raise ValueError(
                f"--domain must be in the configuration: got {name!r}, it has "
                f"{', '.join(config.domains)}. Name some of these."
            )
    config = with_sizes(config, say)
    chosen = {n: c for n, c in config.domains.items() if n in domains or not domains}
    for name, section in chosen.items():
        if count is not None and count > num_problems(section, split):
            raise ValueError(
                f"domain {name!r} has {num_problems(section, split)} {split} problems: got {count} "
                f"to answer. Lower --num-problems, or raise domains.{name}.num_{split}."
            )
    sampling = {
        "num_problems": 100 if count is None else count,
        "num_samples": num_samples,
        "temperature": 1.0,
        "max_completion_tokens": None,
    }
    probing = {"num_samples": num_samples, "num_probe_tokens": MAX_PROBES}
    return config.model_copy(
        update={
            "domains": chosen,
            "model": config.model.model_copy(update={"branches": "full"}),
            "evaluation": config.evaluation.model_copy(update=sampling),
            "monitor": config.monitor.model_copy(update=probing),
        }
    )


def _diagnose_domain(
    engines: dict[str, Engine], config: Config, name: str, split: Split, vocabulary: Vocabulary
) -> DomainDiagnosis:
    portrait, token_divergences = _token_divergences(engines, config, name, split)
    [answers] = engines["student"].call(Branch.verify, {"student": [portrait]})["student"]
    student = domain_result(answers)
    teacher = evaluate(engines["teacher"], config, ["teacher"], split=split)["teacher"][name]
    tokens = probed_tokens(portrait, token_divergences)
    whole = GroupMeasurement(
        measure(tokens, np.ones(len(tokens.problem), dtype=bool)),
        accuracies(student.accuracy, teacher.accuracy),
    )
    bins = by_position(tokens)
    return DomainDiagnosis(
        whole=whole,
        suites=by_suite(tokens, student, teacher),
        bins=bins,
        is_exact=portrait.topk_ids.shape[1] >= len(vocabulary.tokens),
        verdict=judge(
            whole.measured.means["overlap"],
            whole.measured.means["symmetric_kl"],
            whole.accuracy,
            [(b.first, b.last, b.measured.means["overlap"]) for b in bins],
            overlap_k=config.monitor.overlap_k,
        ),
    )


def _token_divergences(
    engines: dict[str, Engine], config: Config, name: str, split: Split
) -> tuple[ProbeRollouts, TokenDivergence]:
    """The student's rollouts, with the seed an evaluation has, and the teacher's view of them."""
    place = evaluation_request(config, name, split)
    request = RolloutRequest(
        action="diagnose",
        problems=tuple(ProblemId(name, split, i) for i in range(place.num_problems)),
        temperature=1.0,
        seed=place.seed,
        position="the diagnosis",
    )
    [portrait] = engines["student"].call(Branch.probe, {"student": [request]})["student"]
    [token_divergences] = engines["teacher"].call(
        Branch.token_divergences, {"teacher": [portrait]}
    )["teacher"]
    return portrait, token_divergences

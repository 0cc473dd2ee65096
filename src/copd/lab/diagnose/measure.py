"""Run a student and a teacher on the student's rollouts.

Each has its own engine, and so reads the problems with its own chat template and processor.
"""

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
    probed_tokens,
    summarize_tokens,
)
from copd.lab.diagnose.verdict import judge
from copd.policy import Vocabulary, require_same
from copd.run.evaluation import domain_result, evaluate_branches, evaluation_request
from copd.types import ProblemId, RolloutRequest, Split

MAX_PROBES = 16_384
"""Tokens per domain at which distributions are compared; of more, a random choice."""


def run_diagnosis(
    student: str, teacher: str, config: Config, *, split: Split, say: Callable[[str], None]
) -> Diagnosis:
    """Diagnose a pair of models on the domains of a configuration from `diagnosis_config`."""
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
            say(f"domain {name}: sampling rollouts of both")
            alone = config.model_copy(update={"domains": {name: config.domains[name]}})
            found[name] = _diagnose_domain(engines, alone, name, split, len(vocabularies[0].tokens))
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


def diagnosis_config(
    config: Config,
    *,
    domains: Sequence[str],
    split: Split,
    count: int | None,
    num_samples: int,
    say: Callable[[str], None],
) -> Config:
    """Return a configuration with some of the domains, whole models and temperature 1.

    Without a `count`, at most 100 problems per domain are used.
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
        available = num_problems(section, split)
        if count is not None and count > available:
            raise ValueError(
                f"domain {name!r} has {available} {split} problems: got {count} to answer. "
                f"Lower --num-problems, or raise domains.{name}.num_{split}."
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
    engines: dict[str, Engine], config: Config, name: str, split: Split, num_tokens: int
) -> DomainDiagnosis:
    """Diagnose the pair on the only domain of `config`; `num_tokens` can be sampled."""
    evaluation = evaluation_request(config, name, split)
    request = RolloutRequest(
        action="diagnose",
        problems=tuple(ProblemId(name, split, i) for i in range(evaluation.num_problems)),
        temperature=1.0,
        seed=evaluation.seed,
        position="the diagnosis",
    )
    [probes] = engines["student"].call(Branch.probe, {"student": [request]})["student"]
    compared = engines["teacher"].call(Branch.token_divergences, {"teacher": [probes]})
    [divergence] = compared["teacher"]
    [rewards] = engines["student"].call(Branch.verify, {"student": [probes]})["student"]
    student = domain_result(rewards)
    results = evaluate_branches(engines["teacher"], config, ["teacher"], split=split)
    teacher = results["teacher"][name]
    tokens = probed_tokens(probes, divergence)
    whole = GroupMeasurement(
        summarize_tokens(tokens, np.ones(len(tokens.problem), dtype=bool)),
        accuracies(student.accuracy, teacher.accuracy),
    )
    bins = by_position(tokens)
    return DomainDiagnosis(
        whole=whole,
        suites=by_suite(tokens, student, teacher),
        bins=bins,
        is_exact=probes.topk_ids.shape[1] >= num_tokens,
        verdict=judge(
            whole.summary.means["overlap"],
            whole.summary.means["symmetric_kl"],
            whole.accuracy,
            [(b.first, b.last, b.summary.means["overlap"]) for b in bins],
            overlap_k=config.monitor.overlap_k,
        ),
    )

"""What a study measured: every model of every seed on the same held-out problems, and its file.

Knows no statistics and starts no run.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from copd.monitor.results import DomainResult
from copd.run.cost import COUNTS
from copd.storage import write_atomically

FORMAT, VERSION = "copd study results", 1
OVERALL = "overall"
"""The row below all domains; no domain may have its name."""

MAX_SAMPLES = 255
"""Correct samples of a problem are counted in one byte."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """One measured model of one seed."""

    column: str
    """Its column in the tables, such as "base", "expert text" or "copd: branch text"."""

    method: str
    """The study's method that made it; "base" for the base."""

    seed: int
    domains: Mapping[str, DomainResult]
    """Held-out problems in index order, the same ones for all columns and seeds."""

    cost: Mapping[str, int]
    """`COUNTS` summed over branches, those of shared experts included."""

    seconds: float
    """Wall time of training, that of shared experts included."""


@dataclass(frozen=True, eq=False)
class StudyResults:
    """All outcomes of a study, finished or not."""

    title: str
    equal: str
    """What the methods had the same amount of: "branch_steps" or "tokens"."""

    experts: Mapping[str, str]
    """Domain to the column of its expert, for the routed oracle."""

    outcomes: tuple[Outcome, ...]
    missing: tuple[str, ...]
    """What is not finished yet, such as "mopd, seed 3"."""

    settings: Mapping[str, Any]
    """Versions, machine, dates, the study file as read: plain values for the page."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def columns(self) -> tuple[str, ...]:
        """In order of appearance."""
        return tuple(dict.fromkeys(outcome.column for outcome in self.outcomes))

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """Domain to the suite of each problem."""
        found: dict[str, tuple[str, ...]] = {}
        for outcome in self.outcomes:
            for domain, result in outcome.domains.items():
                found.setdefault(domain, result.suites)
        return found


def save_results(path: Path, results: StudyResults) -> None:
    """One self-contained JSON file; correct samples per problem as compressed bytes.

    `solved` is not written: pass@S of S samples is whether any is correct.
    """
    samples = {domain: _num_samples(results, domain) for domain in results.problems}
    file = {
        "format": FORMAT,
        "version": VERSION,
        "title": results.title,
        "equal": results.equal,
        "experts": dict(results.experts),
        "missing": list(results.missing),
        "settings": dict(results.settings),
        "domains": {d: _problems(s, samples[d]) for d, s in results.problems.items()},
        "outcomes": [_outcome(outcome, samples) for outcome in results.outcomes],
    }
    write_atomically(path, json.dumps(file, indent=1, allow_nan=False) + "\n")


def load_results(path: Path) -> StudyResults:
    """The inverse of `save_results`; refuses a file that is not whole."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or (data.get("format"), data.get("version")) != (
            FORMAT,
            VERSION,
        ):
            raise ValueError(f'expected "format": "{FORMAT}" and "version": {VERSION}')
        file = _File.model_validate(data)
        suites = {domain: _suites(problems) for domain, problems in file.domains.items()}
        return StudyResults(
            title=file.title,
            equal=file.equal,
            experts=file.experts,
            outcomes=tuple(_read_outcome(own, file.domains, suites) for own in file.outcomes),
            missing=tuple(file.missing),
            settings=file.settings,
        )
    except (ValueError, KeyError, zlib.error) as error:
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        else:
            reason = f"no such domain: {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is damaged or not of this version: {reason}. "
            "Run copd compare on the study again; finished runs are kept and it is written anew."
        ) from error


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Problems(_Strict):
    suites: list[str]
    suite_of: str
    num_problems: NonNegativeInt
    num_samples: NonNegativeInt


class _Measured(_Strict):
    correct: str
    length: NonNegativeFloat


class _Outcome(_Strict):
    column: str
    method: str
    seed: int
    cost: dict[str, NonNegativeInt]
    seconds: NonNegativeFloat
    domains: dict[str, _Measured]


class _File(_Strict):
    format: Literal["copd study results"]
    version: Literal[1]
    title: str
    equal: str
    experts: dict[str, str]
    missing: list[str]
    settings: dict[str, Any]
    domains: dict[str, _Problems]
    outcomes: list[_Outcome]


def _check(results: StudyResults) -> None:
    if not results.outcomes:
        raise ValueError(
            "a study's results need at least one outcome: got none. "
            "Wait until the first run of the study is finished."
        )
    seen: dict[tuple[str, int], str] = {}
    problems = results.problems
    if OVERALL in problems:
        raise ValueError(
            f"a domain of a study cannot be named {OVERALL!r}, the name of a row: rename it."
        )
    for outcome in results.outcomes:
        name = f"{outcome.column}, seed {outcome.seed}"
        if seen.setdefault((outcome.column, outcome.seed), name) is not name:
            raise ValueError(
                f"{name} is there twice: expected one outcome per column and seed. Remove one."
            )
        if set(outcome.cost) != set(COUNTS):
            raise ValueError(
                f"the cost of {name} must have {', '.join(COUNTS)}: got "
                f"{', '.join(outcome.cost) or 'nothing'}. Sum the counts of its runs."
            )
        for domain, result in outcome.domains.items():
            if result.suites != problems[domain]:
                raise ValueError(
                    f"{name} was measured on other {domain} problems than the outcomes before: "
                    "expected the same suites in the same order. Evaluate all on one split."
                )


def _num_samples(results: StudyResults, domain: str) -> int:
    """The smallest number of samples that has all these shares of correct ones."""
    own = [o.domains[domain].accuracy for o in results.outcomes if domain in o.domains]
    shares = np.unique(np.concatenate(own))
    for samples in range(1, MAX_SAMPLES + 1):
        if np.abs(np.rint(shares * samples) / samples - shares).max() < 1e-9:
            return samples
    raise ValueError(
        f"accuracies on {domain} must be shares of at most {MAX_SAMPLES} samples: got "
        f"{len(shares)} different ones that are not. Lower evaluation.num_samples."
    )


def _problems(suites: Sequence[str], num_samples: int) -> dict[str, Any]:
    names = list(dict.fromkeys(suites))
    place = {name: index for index, name in enumerate(names)}
    return {
        "suites": names,
        "suite_of": _pack(np.array([place[suite] for suite in suites], dtype="<u2")),
        "num_problems": len(suites),
        "num_samples": num_samples,
    }


def _suites(problems: _Problems) -> tuple[str, ...]:
    codes = _unpack(problems.suite_of, "<u2", problems.num_problems, len(problems.suites) - 1)
    return tuple(problems.suites[code] for code in codes)


def _outcome(outcome: Outcome, samples: Mapping[str, int]) -> dict[str, Any]:
    domains = {}
    for domain, result in outcome.domains.items():
        assert all((a > 0) == (s == 1) for a, s in zip(result.accuracy, result.solved, strict=True))
        counts = np.rint(np.array(result.accuracy) * samples[domain]).astype("<u1")
        domains[domain] = {"correct": _pack(counts), "length": result.length}
    return {
        "column": outcome.column,
        "method": outcome.method,
        "seed": outcome.seed,
        "cost": dict(outcome.cost),
        "seconds": outcome.seconds,
        "domains": domains,
    }


def _read_outcome(
    own: _Outcome, problems: Mapping[str, _Problems], suites: Mapping[str, tuple[str, ...]]
) -> Outcome:
    domains = {}
    for domain, measured in own.domains.items():
        size, samples = problems[domain].num_problems, problems[domain].num_samples
        counts = _unpack(measured.correct, "<u1", size, samples)
        shares = [count / samples for count in range(samples + 1)]  # shared, not a float each
        accuracy = tuple(shares[count] for count in counts)
        solved = tuple(1.0 if count else 0.0 for count in counts)
        domains[domain] = DomainResult(suites[domain], accuracy, solved, measured.length)
    return Outcome(own.column, own.method, own.seed, domains, own.cost, own.seconds)


def _pack(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")


def _unpack(text: str, dtype: str, size: int, largest: int) -> list[int]:
    values = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype)
    if len(values) != size or values.max(initial=0) > largest:
        raise ValueError(f"expected {size} counts of at most {largest}, got {len(values)} others")
    return values.tolist()

"""The results of a study: every model and seed on the same held-out problems, and their file."""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError
from pydantic.dataclasses import dataclass as validated_dataclass

from copd.monitor.results import DomainResult
from copd.run.cost import COUNTS
from copd.storage import pack_column, unpack_column, write_atomically

FORMAT, VERSION = "copd study results", 2
OVERALL = "overall"
"""The row below all domains; no domain may have its name."""


@validated_dataclass(frozen=True, eq=False, config=ConfigDict(strict=True, extra="forbid"))
class Outcome:
    """One evaluated model of one seed."""

    column: str
    """Its column in the tables, such as "base", "expert text" or "copd: branch text"."""
    method: str
    """The study's method that made it; "base" for the base."""
    seed: int
    domains: Mapping[str, DomainResult]
    """Held-out problems in index order, the same ones for all columns and seeds."""
    cost: Mapping[str, NonNegativeInt]
    """`COUNTS` summed over branches, those of shared experts included."""
    seconds: NonNegativeFloat
    """Wall time of training, that of shared experts included."""


@dataclass(frozen=True, eq=False)
class StudyResults:
    """All outcomes of a study, finished or not."""

    title: str
    equal: str
    """The budget that all methods share: "branch_steps" or "tokens"."""
    experts: Mapping[str, str]
    """Domain to the column of its expert, for the routed oracle."""
    outcomes: tuple[Outcome, ...]
    missing: tuple[str, ...]
    """Jobs that are not finished yet, such as "mopd, seed 3"."""
    settings: Mapping[str, Any]
    """Versions, machine, date and the study as loaded: plain values for a page."""

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise ValueError(
                "a study's results need at least one outcome: got none. "
                "Wait until the first run of the study is finished."
            )
        problems = self.problems
        if OVERALL in problems:
            raise ValueError(
                f"a domain of a study cannot be named {OVERALL!r}, the name of a row: rename it."
            )
        seen = set()
        for outcome in self.outcomes:
            name = f"{outcome.column}, seed {outcome.seed}"
            if name in seen:
                raise ValueError(
                    f"{name} is there twice: expected one outcome per column and seed. Remove one."
                )
            seen.add(name)
            _check_outcome(outcome, name, problems)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in order of appearance."""
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
    """Write results to one self-contained JSON file.

    `solved` is not written: a problem is solved if any of its samples is correct.

    Args:
        path: The file; it is replaced atomically.
        results: The results to write.
    """
    data = {
        "format": FORMAT,
        "version": VERSION,
        **{name: getattr(results, name) for name in ("title", "equal", "missing")},
        **{name: dict(getattr(results, name)) for name in ("experts", "settings")},
        "suites": {domain: pack_column(suites) for domain, suites in results.problems.items()},
        "outcomes": [{**vars(own), "domains": _pack(own.domains)} for own in results.outcomes],
    }
    write_atomically(path, json.dumps(data, indent=1, allow_nan=False) + "\n")


def load_results(path: Path) -> StudyResults:
    """Read the results that `save_results` wrote, in this or the first version of the format.

    Args:
        path: The file.

    Returns:
        The results.

    Raises:
        ValueError: The file is damaged or not of a known version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f'expected "format": "{FORMAT}"')
        if (version := data.pop("version", None)) not in (1, VERSION):
            raise ValueError(f'expected "version": {VERSION}, or 1')
        if version == 1:
            _upgrade(data)
        suites = {domain: unpack_column(column) for domain, column in data.pop("suites").items()}
        for own in data["outcomes"]:
            own["domains"] = {d: _unpack(r, suites[d]) for d, r in own["domains"].items()}
        data["outcomes"] = tuple(Outcome(**own) for own in data["outcomes"])
        return StudyResults(**{**data, "missing": tuple(data["missing"])})
    except (ValueError, LookupError, TypeError, AttributeError, zlib.error) as error:
        reason = f"no such entry: {error}" if isinstance(error, KeyError) else str(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
        raise ValueError(
            f"{path} is damaged or not of this version: {reason}. "
            "Run copd compare on the study again; finished runs are kept and it is written anew."
        ) from error


def _check_outcome(outcome: Outcome, name: str, problems: Mapping[str, tuple[str, ...]]) -> None:
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


def _pack(domains: Mapping[str, DomainResult]) -> dict[str, Any]:
    for own in domains.values():
        assert all((a > 0) == (s == 1) for a, s in zip(own.accuracy, own.solved, strict=True))
    return {
        domain: {"accuracy": pack_column(own.accuracy), "length": own.length}
        for domain, own in domains.items()
    }


def _unpack(packed: Mapping[str, Any], suites: tuple[str, ...]) -> DomainResult:
    accuracy = unpack_column(packed["accuracy"])
    if len(accuracy) != len(suites):
        raise ValueError(f"expected the accuracies of {len(suites)} problems, got {len(accuracy)}")
    solved = tuple(1.0 if share > 0 else 0.0 for share in accuracy)
    return DomainResult(suites, accuracy, solved, packed["length"])


def _upgrade(data: dict[str, Any]) -> None:
    """Repack the columns of version 1, which counted correct samples in bytes."""
    domains = data.pop("domains")
    data["suites"] = {
        domain: {"distinct": own["suites"], "packed": own["suite_of"]}
        for domain, own in domains.items()
    }
    for outcome in data["outcomes"]:
        for domain, own in outcome["domains"].items():
            samples, packed = domains[domain]["num_samples"], base64.b64decode(own.pop("correct"))
            counts = np.frombuffer(zlib.decompress(packed), "<u1").astype("<u2")
            packed = base64.b64encode(zlib.compress(counts.tobytes(), 1)).decode("ascii")
            shares = [count / samples for count in range(samples + 1)]
            own["accuracy"] = {"distinct": shares, "packed": packed}

"""Studies in folders as `copd compare` leaves them: tables from arrays, curves from lines."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from copd.lab.study import Outcome, StudyResults, save_results
from copd.monitor.results import DomainResult
from copd.run.cost import COUNTS

SEEDS = (0, 1, 2)
NUM = 200
"""Problems of a domain."""


@pytest.fixture
def put() -> Callable[..., Path]:
    """Writes results.json: column to the correct problems of its domains, plus one a seed."""

    def write(
        root: Path,
        columns: Mapping[str, Mapping[str, int]],
        *,
        experts: Mapping[str, str] | None = None,
        missing: Sequence[str] = (),
        seeds: Sequence[int] = SEEDS,
        methods: Mapping[str, Mapping] | None = None,
    ) -> Path:
        cost: dict[str, int] = dict.fromkeys(COUNTS, 1)
        outcomes = []
        for column, domains in columns.items():
            for seed in seeds[:1] if column == "base" else seeds:
                measured = {}
                for domain, correct in domains.items():
                    right = correct + seed
                    values = (1.0,) * right + (0.0,) * (NUM - right)
                    measured[domain] = DomainResult((domain,) * NUM, values, values, 3.0)
                method = "base" if column == "base" else column
                outcomes.append(Outcome(column, method, seed, measured, cost, 1.0))
        planned: dict[str, dict] = {column: {} for column in columns if column != "base"}
        settings = {
            "study": {"seeds": list(seeds), "methods": methods or planned},
            "own_budget": [],
            "shared_experts": {method: f"begins after {method}" for method in planned},
            "versions": {"torch": "2.13.0"},
            "machine": "a laptop",
            "collected": "2026-01-01",
        }
        results = StudyResults(
            root.name, "branch_steps", experts or {}, tuple(outcomes), tuple(missing), settings
        )
        root.mkdir(parents=True, exist_ok=True)
        save_results(root / "results.json", results)
        return root

    return write


@pytest.fixture
def put_lines() -> Callable[[Path, Sequence[Mapping]], None]:
    """Writes a file of JSON lines."""

    def write(path: Path, lines: Sequence[Mapping]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return write

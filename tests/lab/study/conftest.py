"""Studies built from arrays: what any test of their statistics may start from."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import ArrayLike

from copd.lab.study import Outcome, StudyResults
from copd.monitor.results import DomainResult
from copd.run.cost import COUNTS

Values = Mapping[str, Mapping[str, ArrayLike]]
"""Column to domain to accuracies `S P`."""


@pytest.fixture(scope="session")
def make_study() -> Callable[..., StudyResults]:
    """A study from accuracies `S P` by column and domain; `suites` by domain, one by default."""

    def make(
        values: Values,
        *,
        suites: Mapping[str, Sequence[str]] | None = None,
        experts: Mapping[str, str] | None = None,
        missing: Sequence[str] = (),
        skip: Sequence[tuple[str, int]] = (),
    ) -> StudyResults:
        outcomes = []
        for place, (column, domains) in enumerate(values.items()):
            arrays = {domain: np.atleast_2d(own) for domain, own in domains.items()}
            for seed in range(len(next(iter(arrays.values())))):
                if (column, seed) in skip:
                    continue
                measured = {}
                for domain, own in arrays.items():
                    accuracy = tuple(own[seed].tolist())
                    named = tuple(suites[domain] if suites else ["only"] * len(accuracy))
                    solved = tuple(float(a > 0) for a in accuracy)
                    measured[domain] = DomainResult(named, accuracy, solved, 4.5)
                cost: dict[str, int] = dict.fromkeys(COUNTS, place * (seed + 1))
                outcomes.append(Outcome(column, column, seed, measured, cost, 60.0 * place))
        found = tuple(outcomes)
        settings = {"copd": "0.1.0", "seeds": [0, 1]}
        equal = "branch_steps"
        return StudyResults("tiny", equal, experts or {}, found, tuple(missing), settings)

    return make

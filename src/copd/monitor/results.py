"""Results of an evaluation: accuracies with intervals, paired differences, and their tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from copd.storage import pack_column, unpack_column

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval over problems; one problem alone has none."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        mean, half = 100 * self.mean, 50 * (self.high - self.low)
        return f"{mean:.1f} \u00b1{half:.1f}" if math.isfinite(half) else f"{mean:.1f}"


@dataclass(frozen=True)
class DomainResult:
    """How one model did on one domain."""

    suites: tuple[str, ...]
    """Suite of each problem."""

    accuracy: tuple[float, ...]
    """Share of correct samples of each problem."""

    solved: tuple[float, ...]
    """Pass@S of each problem, S the number of samples: whether any of them is correct."""

    length: float
    """Mean tokens of a completion."""

    def of_suite(self, suite: str) -> tuple[float, ...]:
        """The accuracies of one suite's problems."""
        return tuple(a for a, s in zip(self.accuracy, self.suites, strict=True) if s == suite)


Results = Mapping[str, DomainResult]
"""Domain to result, of one model."""


def pass_at_k(correct: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """`1 - C(n - c, k) / C(n, k)` for each row of `P S`, unbiased (Chen et al. 2021, eq. 1)."""
    num_samples = correct.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@k needs 1 <= k <= {num_samples}, the samples per problem: got {k}. "
            "Sample more or lower k."
        )
    wrong = num_samples - correct.sum(axis=1)
    return np.array([1.0 - math.comb(int(w), k) / math.comb(num_samples, k) for w in wrong])


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean and normal 95 % interval over problems, which are independent as samples are not."""
    return _mean_of_means([values])


def overall(results: Results) -> Estimate:
    """The plain mean over domains, problems drawn independently in each."""
    return _mean_of_means([result.accuracy for result in results.values()])


def gain(model: Results, base: Results) -> dict[str, Estimate]:
    """Paired differences model - base, per domain and as `mean` over domains."""
    pairs = {
        domain: tuple(np.subtract(model[domain].accuracy, base[domain].accuracy).tolist())
        for domain in base
    }
    return {
        **{d: mean_interval(v) for d, v in pairs.items()},
        "mean": _mean_of_means(list(pairs.values())),
    }


def _mean_of_means(columns: Sequence[Sequence[float]]) -> Estimate:
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    mean = float(np.mean([a.mean() for a in arrays]))
    variances = [a.var(ddof=1) / len(a) if len(a) > 1 else math.inf for a in arrays]
    half = Z95 * math.sqrt(sum(variances)) / len(arrays)
    return Estimate(mean, mean - half, mean + half)


def to_json(results: Mapping[str, Results]) -> dict[str, Any]:
    """All models' results as plain values, a few hundred bytes per thousand problems."""
    return {
        model: {
            d: {
                "suites": pack_column(r.suites),
                "accuracy": pack_column(r.accuracy),
                "solved": pack_column(r.solved),
                "length": r.length,
            }
            for d, r in own.items()
        }
        for model, own in results.items()
    }


def from_json(data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, DomainResult]]:
    """The inverse of `to_json`."""
    return {
        model: {
            d: DomainResult(
                unpack_column(r["suites"]),
                unpack_column(r["accuracy"]),
                unpack_column(r["solved"]),
                r["length"],
            )
            for d, r in own.items()
        }
        for model, own in data.items()
    }


def results_table(results: Mapping[str, Results], title: str) -> Table:
    """Rows: suites, domains, their mean; columns: models.

    Accuracies in percent with 95 % intervals.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("accuracy, %")
    for model in results:
        table.add_column(model, justify="right")
    first = next(iter(results.values()))
    for domain, result in first.items():
        for suite in dict.fromkeys(result.suites):
            cells = [str(mean_interval(own[domain].of_suite(suite))) for own in results.values()]
            table.add_row(f"{domain}/{suite}", *cells)
        table.add_row(
            domain,
            *(str(mean_interval(own[domain].accuracy)) for own in results.values()),
            style="bold",
            end_section=True,
        )
    table.add_row("mean", *(str(overall(own)) for own in results.values()), style="bold")
    return table


def gain_lines(results: Mapping[str, Results], model: str, base: str) -> list[str]:
    """How much `model` is ahead of `base`, in points, on the same problems."""
    lines = [f"{model} - {base} in points, paired over problems, with 95 % intervals:"]
    for domain, d in gain(results[model], results[base]).items():
        lines.append(
            f"  {domain:12s} {100 * d.mean:+5.1f}  [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        )
    return lines

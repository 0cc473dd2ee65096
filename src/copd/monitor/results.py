"""Accuracies on held-out problems: 95 % intervals, paired differences, JSON and tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
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
    """A mean with its 95 % interval over problems, which is infinite for a single problem."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        mean, half = 100 * self.mean, 50 * (self.high - self.low)
        return f"{mean:.1f} \u00b1{half:.1f}" if math.isfinite(half) else f"{mean:.1f}"


@dataclass(frozen=True)
class DomainResult:
    """The result of one model on one domain."""

    suites: tuple[str, ...]
    """Suite of each problem."""
    accuracy: tuple[float, ...]
    """Share of correct samples of each problem."""
    solved: tuple[float, ...]
    """Pass@S of each problem, S the number of samples: whether any of them is correct."""
    length: float
    """Mean tokens of a completion."""

    def of_suite(self, suite: str) -> tuple[float, ...]:
        """Return the accuracies of one suite's problems."""
        return tuple(a for a, s in zip(self.accuracy, self.suites, strict=True) if s == suite)


Results = Mapping[str, DomainResult]
"""Domain to result, of one model."""


def pass_at_k(correct: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Return `1 - C(n - c, k) / C(n, k)` per row of `P S`, unbiased (Chen et al. 2021, eq. 1)."""
    num_samples = correct.shape[1]
    if not 1 <= k <= num_samples:
        raise ValueError(
            f"pass@k needs 1 <= k <= {num_samples}, the samples per problem: got {k}. "
            "Sample more or lower k."
        )
    wrong = num_samples - correct.sum(axis=1)
    return np.array([1.0 - math.comb(int(w), k) / math.comb(num_samples, k) for w in wrong])


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean and normal 95 % interval over problems, which are independent."""
    return _mean_of_means([values])


def paired_difference(model: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return the mean and interval of `model - base` over the same problems."""
    return mean_interval(np.subtract(model, base).tolist())


def overall(results: Results) -> Estimate:
    """Return the plain mean over domains, whose problems are drawn independently."""
    return _mean_of_means([result.accuracy for result in results.values()])


def gain(model: Results, base: Results) -> dict[str, Estimate]:
    """Return the paired differences `model - base` per domain, and their `mean` over domains."""
    pairs = {d: np.subtract(model[d].accuracy, base[d].accuracy).tolist() for d in base}
    means = {d: mean_interval(values) for d, values in pairs.items()}
    return means | {"mean": _mean_of_means([*pairs.values()])}


def _mean_of_means(columns: Sequence[Sequence[float]]) -> Estimate:
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    mean = float(np.mean([a.mean() for a in arrays]))
    variances = [a.var(ddof=1) / len(a) if len(a) > 1 else math.inf for a in arrays]
    half = Z95 * math.sqrt(sum(variances)) / len(arrays)
    return Estimate(mean, mean - half, mean + half)


_COLUMNS = ("suites", "accuracy", "solved")


def to_json(results: Mapping[str, Results]) -> dict[str, Any]:
    """Return all models' results as plain values, a few hundred bytes per thousand problems."""
    return {
        model: {
            domain: {name: pack_column(getattr(result, name)) for name in _COLUMNS}
            | {"length": result.length}
            for domain, result in own.items()
        }
        for model, own in results.items()
    }


def from_json(data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, DomainResult]]:
    """Return the results that `to_json` made plain values of."""

    def result(own: Mapping[str, Any]) -> DomainResult:
        return DomainResult(**{n: unpack_column(own[n]) for n in _COLUMNS}, length=own["length"])

    return {m: {domain: result(r) for domain, r in own.items()} for m, own in data.items()}


def result_rows(
    results: Mapping[str, Results],
) -> Iterator[tuple[str, bool, dict[str, tuple[float, ...]]]]:
    """Yield the rows of a table: a label, whether it is a whole domain, accuracies by model."""
    for domain, first in next(iter(results.values())).items():
        for suite in dict.fromkeys(first.suites):
            own = {model: r[domain].of_suite(suite) for model, r in results.items()}
            yield f"{domain}/{suite}", False, own
        yield domain, True, {model: r[domain].accuracy for model, r in results.items()}


def results_table(results: Mapping[str, Results], title: str) -> Table:
    """Return accuracies in percent with intervals: suites, domains and their mean by model."""
    table = Table(title=title, title_justify="left")
    table.add_column("accuracy, %")
    for model in results:
        table.add_column(model, justify="right")
    for label, is_domain, values in result_rows(results):
        cells = [str(mean_interval(own)) for own in values.values()]
        style = "bold" if is_domain else None
        table.add_row(label, *cells, style=style, end_section=is_domain)
    table.add_row("mean", *(str(overall(own)) for own in results.values()), style="bold")
    return table


def gain_lines(results: Mapping[str, Results], model: str, base: str) -> list[str]:
    """Return lines on how far `model` is ahead of `base`, in points."""
    return [f"{model} - {base} in points, paired over problems, with 95 % intervals:"] + [
        f"  {domain:12s} {100 * d.mean:+5.1f}  [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        for domain, d in gain(results[model], results[base]).items()
    ]

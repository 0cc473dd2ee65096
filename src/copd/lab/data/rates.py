"""Pass rates: how often a model solves each problem, their files and their histogram."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from copd.monitor.results import mean_interval
from copd.storage import append_lines, read_lines, truncate_lines, write_atomically

_WIDTH = 40
"""Characters of the longest bar."""

_MAX_BARS = 16
"""Completions per problem up to which every possible rate has its own bar."""


@dataclass(frozen=True)
class Rate:
    """The rewards of a model on one training problem."""

    index: int
    """Index among the training problems."""
    suite: str
    pass_rate: float
    """Share of its completions with reward 1 or more."""
    mean_reward: float
    file: str | None = None
    line: int | None = None
    """The problem's place, if it comes from a file."""


@dataclass(frozen=True)
class Histogram:
    """Numbers of problems that are never, sometimes and always solved."""

    num_never: int
    num_between: int
    num_always: int

    @classmethod
    def of(cls, rates: Sequence[Rate]) -> Self:
        never = sum(rate.pass_rate == 0 for rate in rates)
        always = sum(rate.pass_rate == 1 for rate in rates)
        return cls(never, len(rates) - never - always, always)

    def __str__(self) -> str:
        counts = (self.num_never, self.num_between, self.num_always)
        total = max(1, sum(counts))
        never, between, always = (f"{count} ({count / total:.0%})" for count in counts)
        return f"at 0 %: {never}, between: {between}, at 100 %: {always}"


class RatesFile:
    """A JSON file of rates, and a file of lines beside it until all rates are measured.

    Both record the settings of the measurement, and are refused with any other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self._settings = dict(settings)

    def known(self, *, total: int, chunk: int) -> list[Rate]:
        """Return the rates that an earlier call measured: all, or some complete chunks."""
        if self.path.exists():
            found = _loaded(self.path)
            self._require_same(self.path, found.get("settings"))
            return [Rate(**rate) for rate in found["problems"]]
        head, *lines = list(read_lines(self.partial)) or [{}]
        if not head:  # no file, or a crash cut off its first line
            write_atomically(self.partial, json.dumps({"settings": self._settings}) + "\n")
            return []
        self._require_same(self.partial, head.get("settings"))
        whole = total if len(lines) == total else len(lines) // chunk * chunk
        truncate_lines(self.partial, lambda line: "settings" in line or line["index"] < whole)
        return [Rate(**line) for line in lines[:whole]]

    def add(self, rates: Sequence[Rate]) -> None:
        """Append rates, which are on the disk when this returns."""
        append_lines(self.partial, map(asdict, rates))

    def finish(self, rates: Sequence[Rate]) -> None:
        """Write all rates as one JSON file, and remove the lines."""
        whole = {
            "settings": self._settings,
            "histogram": asdict(Histogram.of(rates)),
            "problems": [asdict(rate) for rate in rates],
        }
        write_atomically(self.path, json.dumps(whole, indent=1) + "\n")
        self.partial.unlink(missing_ok=True)

    def _require_same(self, path: Path, settings: object) -> None:
        if settings != self._settings:
            raise ValueError(
                f"{path} has the pass rates of another model, other data or other settings: "
                "expected those of this call. Choose another --rates, or remove the file."
            )


def _loaded(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{path} exists and holds no pass rates: expected a new file. Choose another --rates."
        )
    return found


def rate_lines(rates: Sequence[Rate], num_samples: int) -> Iterator[str]:
    """Yield the lines of a histogram, a bar per possible rate or per tenth."""
    bars = _exact(rates, num_samples) if num_samples <= _MAX_BARS else _tenths(rates)
    longest = max(1, *bars.values())
    for name, count in bars.items():
        bar = "#" * math.ceil(_WIDTH * count / longest)
        yield f"  {name:>9s} {count:7,d}  {bar}".rstrip()
    yield str(Histogram.of(rates))
    yield f"mean pass rate: {mean_interval([rate.pass_rate for rate in rates])} %"
    by_suite: dict[str, list[Rate]] = {}
    for rate in rates:
        by_suite.setdefault(rate.suite, []).append(rate)
    if len(by_suite) > 1:
        yield from (f"  {suite}: {Histogram.of(own)}" for suite, own in sorted(by_suite.items()))


def _exact(rates: Sequence[Rate], num_samples: int) -> dict[str, int]:
    counts = dict.fromkeys(range(num_samples + 1), 0)
    for rate in rates:
        counts[round(rate.pass_rate * num_samples)] += 1
    return {f"{100 * n / num_samples:.4g} %": count for n, count in counts.items()}


def _tenths(rates: Sequence[Rate]) -> dict[str, int]:
    """Count by tenths, which include their lower bounds; 0 and 1 are counted apart."""
    between = [rate.pass_rate for rate in rates if 0 < rate.pass_rate < 1]
    tenths = {
        f"{10 * i}-{10 * i + 10} %": sum(int(10 * r) == i for r in between) for i in range(10)
    }
    ends = Histogram.of(rates)
    return {"0 %": ends.num_never, **tenths, "100 %": ends.num_always}

"""Run training configurations one after another and print the peak memory of their phases.

Reads configurations as JSON from stdin and prints JSON. Peaks are resident pages as the kernel
counts them (VmHWM, reset before every phase), above what the process held before the model was
loaded. Freed blocks of 64 kB and more go back to the kernel at once, so that a peak is what is in
use and one run does not show in the next.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from copd.branch import Branch
from copd.config import Config, parse_config
from copd.engine import Engine, create_engine
from copd.run.runner import Runner

Input = TypeVar("Input")
Output = TypeVar("Output")

_M_MMAP_THRESHOLD = -3
"""An option of mallopt: blocks from this size on are mapped separately."""


class Peaks:
    """The peak resident memory of every phase, in bytes above the level at the start."""

    def __init__(self) -> None:
        self._floor = resident("VmRSS")
        self.of: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the peak of the block; a phase that occurs again keeps its highest."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM
        try:
            yield
        finally:
            self.of[name] = max(self.of.get(name, 0), resident("VmHWM") - self._floor)


class Watched:
    """An engine whose methods are phases."""

    def __init__(self, engine: Engine, peaks: Peaks) -> None:
        self._engine, self._peaks = engine, peaks
        self.is_parallel = engine.is_parallel

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        with self._peaks.phase("spawn"):
            self._engine.spawn(name, model, frozen=frozen)

    def drop(self, name: str) -> None:
        self._engine.drop(name)

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        with self._peaks.phase(method.__name__):
            return self._engine.call(method, inputs)

    def clear(self) -> None:
        self._engine.clear()

    def close(self) -> None:
        self._engine.close()


def measure(values: Mapping[str, Any], *, warm: bool) -> dict[str, float]:
    """Return the peaks of a run and the mean length of its completions.

    With `warm` the embedded base runs the same in float32 before it, which loads all code and
    libraries but compiles no products.
    """
    small = {**values["model"], "path": "tiny", "dtype": "float32"}
    with tempfile.TemporaryDirectory() as folder:
        if warm:
            run(parse_config({**values, "model": small, "output_dir": f"{folder}/warm"}), None)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        peaks = Peaks()
        run(parse_config({**values, "output_dir": f"{folder}/measured"}), peaks)
        lines = Path(f"{folder}/measured/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lengths = [
        value
        for line in lines
        for metrics in json.loads(line)["branches"].values()
        for key, value in metrics.items()
        if key.endswith("/length")
    ]
    return {**peaks.of, "length": statistics.mean(lengths)}


def run(config: Config, peaks: Peaks | None) -> None:
    engine = create_engine(config)
    watched = engine if peaks is None else Watched(engine, peaks)
    Runner(config, watched, Console(file=sys.stderr, quiet=True)).run()
    engine.close()


def resident(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in status if line.startswith(field)]
    return 1024 * int(line.split()[1])


def main() -> None:
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**16)
    measured: list[dict[str, float]] = []
    seen: set[str] = set()
    for values in json.load(sys.stdin):
        modalities = sorted({domain["modality"] for domain in values["domains"].values()})
        kind = json.dumps([values["model"].get("branches"), modalities])
        measured.append(measure(values, warm=kind not in seen))
        seen.add(kind)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()

"""Measures copd against TRL on this machine and writes docs/benchmarks.md: `make bench`.

Each side of a case is a process of its own with its model loaded and warm; they take turns, one
step each a round, so that both meet the same state of the machine. Computes nothing itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import floor, table
from benchmarks.cases import CASES, Case
from benchmarks.model import save_model
from benchmarks.ratios import CLOCKS, Answer, summary

_WARM_UP = 2
_TRIALS, _TRIAL_SECONDS = 3, 10.0
_MEASURED_SECONDS = 30.0
_OUR_MICRO_BATCHES = (0, 2048)
_BUSY = 0.5
"""Load average above which the machine is not ours alone."""
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")


@dataclass
class Worker:
    """A side of a case, alive and waiting."""

    side: str
    case: Case
    folder: Path
    threads: int
    micro_batch: int = 0
    ready: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        words = [
            self.side,
            self.case.name,
            str(self.folder),
            "--micro-batch",
            f"{self.micro_batch}",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
        )
        self.ready = self._receive()

    def take(self, step: int, *, count_flops: bool = False) -> Answer:
        """One step, measured."""
        self._send({"step": step, "count_flops": count_flops})
        return self._receive()

    def stop(self) -> None:
        self._send({"stop": True})
        self._process.communicate()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None, "opened as a pipe"
        print(json.dumps(message), file=self._process.stdin, flush=True)

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None, "opened as a pipe"
        line = self._process.stdout.readline()
        if not line:
            self._process.communicate()
            raise SystemExit(f"the {self.side} worker of case {self.case.name} ended: see above.")
        return json.loads(line)


Tried = dict[str, dict[int, dict[str, float]]]
"""By side and size of its micro-batches: seconds of a step, and growth."""


def measure(case: Case, folder: Path, tried: Tried, *, threads: int, rounds: int) -> dict[str, Any]:
    """All numbers of one case: at least so many rounds, and more where they are short."""
    best = choose_micro_batches(case, tried)
    theirs, ours = (Worker(side, case, folder, threads, size) for side, size in best.items())
    pair = [theirs, ours]
    answers: dict[str, list[Answer]] = {theirs.side: [], ours.side: []}
    last, started = 0, time.perf_counter()
    while last < _WARM_UP + rounds or time.perf_counter() - started < _MEASURED_SECONDS:
        for worker in pair if last % 2 else reversed(pair):
            answers[worker.side].append(worker.take(last))
        check_same_work(case, answers[theirs.side][-1], answers[ours.side][-1])
        last += 1
    counted = (theirs.take(last, count_flops=True), ours.take(last, count_flops=True))
    for worker in pair:
        worker.stop()
    measured = summary(
        case.reference,
        answers[theirs.side][_WARM_UP:],
        answers[ours.side][_WARM_UP:],
        counted,
        measure_matmul(case, folder, threads=threads, rounds=rounds),
        floor.least_of_step(case, last, folder),
    )
    facts = {"case": case.name, "threads": threads, "micro_batch": best, "micro_batches": tried}
    return facts | measured


def choose_micro_batches(case: Case, tried: Tried) -> dict[str, int]:
    """The other side's fastest; of ours the fastest that needs no more memory than that."""
    theirs, ours = tried[case.reference], tried["ours"]
    best = min(theirs, key=lambda size: theirs[size]["seconds"])
    limit = theirs[best]["growth"]
    frugal = [size for size in ours if ours[size]["growth"] <= limit] or list(ours)
    return {case.reference: best, "ours": min(frugal, key=lambda size: ours[size]["seconds"])}


def check_same_work(case: Case, theirs: Answer, ours: Answer) -> None:
    if theirs["tokens"] != ours["tokens"]:
        raise SystemExit(
            f"{case.name}: {case.reference} sampled {theirs['tokens']} tokens, copd "
            f"{ours['tokens']}; the planned lengths did not hold."
        )


def try_micro_batches(
    side: str, case: Case, folder: Path, *, threads: int, clock: int
) -> dict[int, dict[str, float]]:
    """Time and memory of a side by the size of its micro-batches, at the first number of threads.

    In rows, all, a half, a quarter or an eighth; ours in tokens, 0 being the default. Long steps
    need no warm-up to be told apart.
    """
    if case.reference == "parts":
        return {0: {"seconds": 0.0, "growth": 0.0}}
    found = {}
    rows = (case.num_rows // n for n in (1, 2, 4, 8))
    for size in _OUR_MICRO_BATCHES if side == "ours" else rows:
        worker = Worker(side, case, folder, threads, size)
        answers = [worker.take(0)]
        while len(answers) < _TRIALS and sum(a["seconds"][0] for a in answers) < _TRIAL_SECONDS:
            answers.append(worker.take(len(answers)))
        worker.stop()
        seconds = min(a["seconds"][clock] for a in answers)
        found[size] = {"seconds": seconds, "growth": answers[-1]["growth"]}
        if seconds > 1.1 * min(one["seconds"] for one in found.values()):
            break  # smaller ones only get slower
    return found


def measure_matmul(
    case: Case, folder: Path, *, threads: int, rounds: int
) -> tuple[list[Answer], Answer]:
    worker = Worker("matmul", case, folder, threads)
    answers = [worker.take(step) for step in range(_WARM_UP + rounds)]
    counted = worker.take(_WARM_UP + rounds, count_flops=True)
    worker.stop()
    return answers[_WARM_UP:], counted


def processor() -> str:
    """The name of the CPU."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        kilobytes = int(file.readline().split()[1])
    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or "unknown",
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": kilobytes * 1024,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured steps per side and case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--quick", action="store_true", help="3 rounds, 1 thread, short prompts")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="for the table")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the results")
    parser.add_argument("--render", action="store_true", help="only write the table again")
    given = parser.parse_args(words)
    if given.quick:
        given.rounds, given.threads = 3, [1]
        given.cases = [name for name in given.cases if name not in ("image256", "video128")]
    return given


def measure_all(given: argparse.Namespace, results: Path) -> None:
    """Every case at every number of threads; the file is complete after each of them."""
    machine = describe_machine()
    if machine["load"] > _BUSY:
        print(f"warning: load average is {machine['load']:.1f}; wall times will be noise.")
    record: dict[str, Any] = {"machine": machine, "rounds": given.rounds, "measured": []}
    clock = CLOCKS.index(given.clock)
    tried: dict[str, Tried] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder)
        for threads, name in itertools.product(given.threads, given.cases):
            started, case = time.perf_counter(), CASES[name]
            if name not in tried:
                tried[name] = {
                    side: try_micro_batches(side, case, folder, threads=threads, clock=clock)
                    for side in (case.reference, "ours")
                }
            measured = measure(case, folder, tried[name], threads=threads, rounds=given.rounds)
            minutes = (time.perf_counter() - started) / 60
            print(table.line(measured, given.clock), f"({minutes:.1f} min)", flush=True)
            record["measured"].append(measured)
            results.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    given = parse()
    results, page = given.out / "benchmarks.json", given.out / "benchmarks.md"
    if not given.render:
        measure_all(given, results)
    text = table.page(json.loads(results.read_text(encoding="utf-8")), given.clock)
    page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

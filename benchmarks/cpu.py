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
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import floor, table
from benchmarks.cases import CASES, Case
from benchmarks.model import save_model
from benchmarks.ratios import CLOCKS, Answer, summary
from benchmarks.workers import Worker, WorkerEnded, start

_WARM_UP = 2
_TRIALS, _TRIAL_SECONDS = 3, 10.0
_MEASURED_SECONDS = 20.0
_LONG_SECONDS = 15.0
"""Of a first round, after which the sides are warm."""
_OUR_MICRO_BATCHES = (0, 2048)
_BUSY = 0.5
"""Load average above which the machine is not ours alone."""
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")


Tried = dict[str, dict[int, dict[str, float]]]
"""By side and size of its micro-batches: seconds of a step, and growth."""


class OtherWork(RuntimeError):
    """The sides did not do the same."""


def measure(case: Case, folder: Path, tried: Tried, *, threads: int, rounds: int) -> dict[str, Any]:
    """All numbers of one case: at least so many rounds, and more where they are short."""
    best = choose_micro_batches(case, tried)
    with ExitStack() as stack:
        sides = [*best.items(), ("matmul", 0), ("steps", 0)]
        theirs, ours, matmul, steps = start(stack, sides, case, folder, threads)
        answers = alternate(case, theirs, ours, rounds)
        last = _WARM_UP + len(answers)  # problems that neither has seen
        counted = (theirs.take(last, count_flops=True), ours.take(last, count_flops=True))
        measured = summary(
            case.reference,
            [their for their, _ in answers],
            [our for _, our in answers],
            counted,
            ([matmul.take(step) for step in range(rounds)], matmul.take(rounds, count_flops=True)),
            floor.least_of_step(case, last, folder),
            [steps.take(step) for step in range(rounds)],
        )
    facts = {"case": case.name, "threads": threads, "micro_batch": best, "micro_batches": tried}
    return facts | measured


def alternate(case: Case, theirs: Worker, ours: Worker, rounds: int) -> list[tuple[Answer, Answer]]:
    """What both answer, round by round, once they are warm."""
    answers: list[tuple[Answer, Answer]] = []
    warm_up, started = _WARM_UP, time.perf_counter()
    while len(answers) < warm_up + rounds or time.perf_counter() - started < _MEASURED_SECONDS:
        step = len(answers)
        order = (theirs, ours) if step % 2 else (ours, theirs)
        took = {worker.side: worker.take(step) for worker in order}
        check_same_work(case, took[theirs.side], took[ours.side])
        answers.append((took[theirs.side], took[ours.side]))
        if time.perf_counter() - started > _LONG_SECONDS:
            warm_up = min(warm_up, len(answers))
    return answers[warm_up:]


def choose_micro_batches(case: Case, tried: Tried) -> dict[str, int]:
    """The other side's fastest; of ours the fastest that needs no more memory than that."""
    theirs, ours = tried[case.reference], tried["ours"]
    best = min(theirs, key=lambda size: theirs[size]["seconds"])
    limit = theirs[best]["growth"]
    frugal = [size for size in ours if ours[size]["growth"] <= limit] or list(ours)
    return {case.reference: best, "ours": min(frugal, key=lambda size: ours[size]["seconds"])}


def check_same_work(case: Case, theirs: Answer, ours: Answer) -> None:
    if theirs["tokens"] != ours["tokens"]:
        raise OtherWork(
            f"{case.name}: {case.reference} sampled {theirs['tokens']} tokens, copd "
            f"{ours['tokens']}; the planned lengths did not hold."
        )


def try_micro_batches(case: Case, folder: Path, *, threads: int, clock: int) -> Tried:
    """Time and memory of both sides by the size of their micro-batches.

    In rows, all, a half, a quarter or an eighth; ours in tokens, 0 being the default. Long steps
    need no warm-up to be told apart.
    """
    if case.reference == "parts":
        return {side: {0: {"seconds": 0.0, "growth": 0.0}} for side in ("parts", "ours")}
    sizes = {case.reference: [case.num_rows // n for n in (1, 2, 4, 8)], "ours": _OUR_MICRO_BATCHES}
    with ExitStack() as stack:
        sides = [(side, size) for side in sizes for size in sizes[side]]
        workers = start(stack, sides, case, folder, threads)
        return {
            side: try_one_by_one([w for w in workers if w.side == side], clock) for side in sizes
        }


def try_one_by_one(workers: Sequence[Worker], clock: int) -> dict[int, dict[str, float]]:
    """By the size of micro-batches, largest first, until they only get slower."""
    found: dict[int, dict[str, float]] = {}
    for worker in workers:
        answers = [worker.take(0)]
        while len(answers) < _TRIALS and sum(a["seconds"][0] for a in answers) < _TRIAL_SECONDS:
            answers.append(worker.take(len(answers)))
        worker.stop()
        seconds = min(a["seconds"][clock] for a in answers)
        found[worker.micro_batch] = {"seconds": seconds, "growth": answers[-1]["growth"]}
        if seconds > 1.1 * min(one["seconds"] for one in found.values()):
            break
    return found


def processor() -> str:
    """The name of the CPU."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        kilobytes = int(file.readline().split()[1])
    return {
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": kilobytes * 1024,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """What is measured; results that are being written do not change it."""

    def git(*words: str) -> str:
        found = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return found.stdout.strip()

    name = git("rev-parse", "--short", "HEAD") or "unknown"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs")
    return f"{name}-dirty" if changed else name


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured steps per side and case")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--quick", action="store_true", help="3 rounds, 1 thread, short prompts")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="for the table")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="only what OUT does not have yet")
    parser.add_argument("--render", action="store_true", help="only write the table again")
    given = parser.parse_args(words)
    if given.quick:
        given.rounds, given.threads = 3, [1]
        given.cases = [name for name in given.cases if name not in ("image256", "video128")]
    return given


def begin(given: argparse.Namespace) -> dict[str, Any]:
    """An empty record; with --resume the one that is there, if it is of this code and machine."""
    machine = describe_machine()
    if machine["load"] > _BUSY:
        print(f"warning: load average is {machine['load']:.1f}; wall times will be noise.")
    fresh: dict[str, Any] = {"machine": machine, "rounds": given.rounds, "measured": []}
    if not given.resume:
        return fresh
    record = json.loads((given.out / "benchmarks.json").read_text(encoding="utf-8"))
    same = ("commit", "processor", "cores", "memory", "python", "packages")
    other = [name for name in same if record["machine"][name] != machine[name]]
    if other or record["rounds"] != given.rounds:
        raise SystemExit(
            f"--resume needs results of the same code, machine and rounds: got another "
            f"{', '.join(other) or 'number of rounds'} in {given.out}. Measure again without it."
        )
    return record


def measure_all(given: argparse.Namespace) -> list[str]:
    """Every case at every number of threads, the results written after each; returns failures."""
    record = begin(given)
    clock = CLOCKS.index(given.clock)
    tried: dict[str, Tried] = {m["case"]: _read_tried(m) for m in record["measured"]}
    done = {(m["threads"], m["case"]) for m in record["measured"]}
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder)
        for threads, name in itertools.product(given.threads, given.cases):
            if (threads, name) in done:
                continue
            started, case = time.perf_counter(), CASES[name]
            try:
                if name not in tried:
                    tried[name] = try_micro_batches(case, folder, threads=threads, clock=clock)
                measured = measure(case, folder, tried[name], threads=threads, rounds=given.rounds)
            except (WorkerEnded, OtherWork) as error:
                failures.append(f"{name}, {threads} thread(s): {error}")
                print(failures[-1], flush=True)
                continue
            minutes = (time.perf_counter() - started) / 60
            print(table.line(measured, given.clock), f"({minutes:.1f} min)", flush=True)
            record["measured"].append(measured)
            write(record, given)
    return failures


def _read_tried(measured: dict[str, Any]) -> Tried:
    """JSON has strings for numbers where they are keys."""
    return {
        side: {int(size): cost for size, cost in sizes.items()}
        for side, sizes in measured["micro_batches"].items()
    }


def write(record: dict[str, Any], given: argparse.Namespace) -> None:
    """Numbers and page; a file is the old one or the new one, never half of it."""
    texts = {
        "benchmarks.json": json.dumps(record, indent=1) + "\n",
        "benchmarks.md": table.page(record, given.clock),
    }
    for name, text in texts.items():
        aside = given.out / f".{name}.tmp"
        aside.write_text(text, encoding="utf-8")
        aside.replace(given.out / name)


def main() -> None:
    given = parse()
    if given.render:
        write(json.loads((given.out / "benchmarks.json").read_text(encoding="utf-8")), given)
    failures = [] if given.render else measure_all(given)
    if failures:
        raise SystemExit("\n".join(["not measured:", *failures]))


if __name__ == "__main__":
    main()

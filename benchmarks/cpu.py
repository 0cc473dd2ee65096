"""Measure copd against TRL on this machine and write docs/benchmarks.md: `make bench`.

Each side of a case is a process of its own with its model loaded and warm. The sides take turns,
one step each a round, so that both meet the same state of the machine.
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
from benchmarks.worker import Worker, WorkerEnded, start
from copd.storage import write_atomically

_WARM_UP = 2
_TRIALS, _TRIAL_SECONDS = 3, 10.0
_MEASURED_SECONDS = 20.0
_LONG_SECONDS = 15.0
"""After a first round of this length the sides are warm."""
_OUR_MICRO_BATCHES = (0, 2048)
_BUSY = 0.5
"""Load average above which other programs disturb the measurement."""
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")

Tried = dict[str, dict[int, dict[str, float]]]
"""Seconds of a step and memory growth, by side and micro-batch size."""


class OtherWork(RuntimeError):
    """The sides did not do the same work."""


def measure(case: Case, folder: Path, tried: Tried, *, threads: int, rounds: int) -> dict[str, Any]:
    """Return all numbers of a case, from so many rounds or more where they are short."""
    best = choose_micro_batches(case, tried)
    with ExitStack() as stack:
        sides = [*best.items(), ("matmul", 0), ("steps", 0)]
        theirs, ours, matmul, steps = start(stack, sides, case, folder, threads)
        answers = alternate(case, theirs, ours, rounds)
        last = _WARM_UP + len(answers)  # problems that neither side has seen
        measured = summary(
            case.reference,
            [their for their, _ in answers],
            [our for _, our in answers],
            (theirs.take(last, count_flops=True), ours.take(last, count_flops=True)),
            ([matmul.take(step) for step in range(rounds)], matmul.take(rounds, count_flops=True)),
            floor.least_of_step(case, last, folder),
            [steps.take(step) for step in range(rounds)],
        )
    facts = {"case": case.name, "threads": threads, "micro_batch": best, "micro_batches": tried}
    return facts | measured


def alternate(case: Case, theirs: Worker, ours: Worker, rounds: int) -> list[tuple[Answer, Answer]]:
    """Return the measurements of both sides, round by round, after warming up."""
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
    """Choose the reference's fastest size, and ours that is fastest within its memory."""
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
    """Measure time and memory of both sides by micro-batch size.

    The reference tries all rows, a half, a quarter and an eighth; ours are in tokens, 0 being the
    default.
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
    """Measure workers from the largest micro-batch on, until they only get slower."""
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
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe_machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """Return the measured commit, marked if files outside docs/ differ from it."""

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
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.rounds, arguments.threads = 3, [1]
        arguments.cases = [n for n in arguments.cases if n not in ("image256", "video128")]
    return arguments


def begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return an empty record, or with --resume the one of the same code and machine."""
    machine = describe_machine()
    if machine["load"] > _BUSY:
        print(f"warning: load average is {machine['load']:.1f}; wall times will be noise.")
    if not arguments.resume:
        return {"machine": machine, "rounds": arguments.rounds, "measured": []}
    record = read(arguments.out)
    same = ("commit", "processor", "cores", "memory", "python", "packages")
    other = [name for name in same if record["machine"][name] != machine[name]]
    if other or record["rounds"] != arguments.rounds:
        raise SystemExit(
            f"--resume needs results of the same code, machine and rounds: got another "
            f"{', '.join(other) or 'number of rounds'} in {arguments.out}. Measure again without "
            "it."
        )
    return record


def measure_all(arguments: argparse.Namespace) -> list[str]:
    """Measure every case at every number of threads; return failures.

    The results are written after each case.
    """
    record = begin(arguments)
    clock, rounds = CLOCKS.index(arguments.clock), arguments.rounds
    tried: dict[str, Tried] = {m["case"]: _read_tried(m) for m in record["measured"]}
    done = {(m["threads"], m["case"]) for m in record["measured"]}
    failures = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder)
        for threads, name in itertools.product(arguments.threads, arguments.cases):
            if (threads, name) in done:
                continue
            started, case = time.perf_counter(), CASES[name]
            try:
                if name not in tried:
                    tried[name] = try_micro_batches(case, folder, threads=threads, clock=clock)
                measured = measure(case, folder, tried[name], threads=threads, rounds=rounds)
            except (WorkerEnded, OtherWork) as error:
                failures.append(f"{name}, {threads} thread(s): {error}")
                print(failures[-1], flush=True)
                continue
            minutes = (time.perf_counter() - started) / 60
            print(table.line(measured, arguments.clock), f"({minutes:.1f} min)", flush=True)
            record["measured"].append(measured)
            write(record, arguments.out, arguments.clock)
    return failures


def _read_tried(measured: dict[str, Any]) -> Tried:
    """Return `micro_batches` with integer keys, which JSON does not have."""
    return {
        side: {int(size): cost for size, cost in sizes.items()}
        for side, sizes in measured["micro_batches"].items()
    }


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "benchmarks.json").read_text(encoding="utf-8"))


def write(record: dict[str, Any], folder: Path, clock: str) -> None:
    """Write numbers and page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmarks.json", json.dumps(record, indent=1) + "\n")
    write_atomically(folder / "benchmarks.md", table.page(record, clock))


def main() -> None:
    arguments = parse()
    if arguments.render:
        write(read(arguments.out), arguments.out, arguments.clock)
    elif failures := measure_all(arguments):
        raise SystemExit("\n".join(["not measured:", *failures]))


if __name__ == "__main__":
    main()

"""The results as a Markdown page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from benchmarks.steps import ALL_ROWS, ONE_ROW

Record = dict[str, Any]

_REFERENCES = {"trl": "TRL", "repeated": "repeated", "parts": "its parts"}
_NOTES = Path(__file__).with_name("notes.md")
_BOUNDS = _NOTES.with_name("bounds.md")
_REMARKS = {
    "6c1a334": "That commit still decoded the embedded model with code of its own. Without it a "
    "whole step takes 1.05 to 1.31 times as long, depending on the case: docs/appendix/log.md, "
    "2026-11-30, has the measurements. The page has not been measured again since."
}
"""Commit to a remark that holds for measurements of it."""


def page(record: Record, clock: str) -> str:
    """Return docs/benchmarks.md, its times on one of the two clocks."""
    remark = _REMARKS.get(record["machine"]["commit"])
    threads = dict.fromkeys(row["threads"] for row in record["measured"])
    sections = [
        "# Against TRL, on a CPU",
        f"Written by `make bench`. {_machine(record)}",
        *([remark] if remark else []),
        _NOTES.read_text(encoding="utf-8").rstrip(),
        *_missing(record),
        *(_section(record, number, clock) for number in threads),
        *_bounds(record, clock),
    ]
    return "\n\n".join(sections) + "\n"


def line(measured: Record, clock: str) -> str:
    """Return one case in a line, for the terminal."""
    case, numbers = CASES[measured["case"]], measured["clocks"][clock]
    parts = ", ".join(f"{name} {share:.0%}" for name, share in numbers["shares"].items())
    return (
        f"{case.name}, {measured['threads']} thread(s): {_ratio(case, numbers)} "
        f"(target {_target(case)}), {_verdict(case, numbers['ratio']['median'])}; {parts}"
    )


def _machine(record: Record) -> str:
    machine = record["machine"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"{machine['date']}, commit {machine['commit']}, at least {record['rounds']} rounds; "
        f"{machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB, {machine['system']}, load "
        f"average {machine['load']:.1f} at the start; Python {machine['python']}, {packages}."
    )


def _missing(record: Record) -> list[str]:
    """Name the cases that the command measures and this record lacks."""
    measured = {(m["threads"], m["case"]) for m in record["measured"]}
    parts = []
    for threads in (1, 2):
        names = [name for name in CASES if (threads, name) not in measured]
        if names:
            cases = "all cases" if len(names) == len(CASES) else ", ".join(names)
            parts.append(f"{cases} with {_threads(threads)}")
    return [f"Not measured in this run: {'; '.join(parts)}."] if parts else []


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _section(record: Record, threads: int, clock: str) -> str:
    rows = [m for m in record["measured"] if m["threads"] == threads]
    title = f"## {_threads(threads)}, {clock} time"
    return "\n\n".join([title, _speed(rows, clock), _memory(rows), _work(rows, clock)])


def _speed(rows: Sequence[Record], clock: str) -> str:
    header = "case|against|target|ratio|quartiles|extremes||ours, s|micro-batch"

    def cells(case: Case, row: Record) -> list[str]:
        numbers = row["clocks"][clock]
        spread = numbers["ratio"]
        against = _REFERENCES[case.reference]
        if case.reference != "parts":
            against += f", {row['micro_batch'][case.reference]} rows"
        return [
            *(case.title, against, _target(case), _ratio(case, numbers)),
            _range(case, spread["lower"], spread["upper"]),
            _range(case, spread["least"], spread["most"]),
            _verdict(case, spread["median"]),
            f"{numbers['seconds']['median']:.3f}",
            f"{row['micro_batch']['ours'] or 'default'}",
        ]

    return _table(header, rows, cells)


def _memory(rows: Sequence[Record]) -> str:
    header = "case|peak, MB|reference|growth, MB|reference|"

    def cells(case: Case, row: Record) -> list[str]:
        ours, theirs = row["memory"]["ours"], row["memory"]["reference"]
        sizes = [ours["peak"], theirs["peak"], ours["growth"], theirs["growth"]]
        is_above = ours["growth"] > theirs["growth"] or ours["peak"] > theirs["peak"]
        found = "**missed**" if is_above else "met"
        last = "" if case.reference == "parts" else found
        return [case.title, *(f"{size / 1e6:.0f}" for size in sizes), last]

    return _table(header, rows, cells)


def _work(rows: Sequence[Record], clock: str) -> str:
    header = "case|sampling|scoring|update|GFLOP|reference|least|ours / least|reference / least"
    header += "|matmul, GFLOP/s|reached"

    def cells(case: Case, row: Record) -> list[str]:
        numbers, flops = row["clocks"][clock], row["flops"]
        reached = flops["ours"] / numbers["seconds"]["median"] / numbers["matmul_rate"]
        return [
            case.title,
            *(f"{numbers['shares'].get(n, 0):.0%}" for n in ("sampling", "scoring", "update")),
            *(f"{flops[name] / 1e9:.1f}" for name in ("ours", "reference", "least")),
            *(f"{flops[name] / flops['least']:.2f}" for name in ("ours", "reference")),
            f"{numbers['matmul_rate'] / 1e9:.0f}",
            f"{reached:.0%}",
        ]

    return _table(header, rows, cells)


def _bounds(record: Record, clock: str) -> list[str]:
    """Return the section on the time of the cases that miss their target."""
    missed = [
        row
        for row in record["measured"]
        if row["clocks"][clock]["ratio"]["median"] < CASES[row["case"]].target
    ]
    if not missed:
        return []
    header = "case|threads|ours, s|target, s|sampling, s|fixed, s|scoring, s|update, s|optimizer, s"
    header += "|matrices, s|decode step, ms|one row, ms|FLOPs, reference / ours|ratio at the least"

    def cells(case: Case, row: Record) -> list[str]:
        numbers, flops = row["clocks"][clock], row["flops"]
        decode, rate = numbers["decode_step"], numbers["matmul_rate"]
        ours, theirs = (numbers[n]["median"] for n in ("seconds", "reference_seconds"))
        spent = {name: share * ours for name, share in numbers["shares"].items()}
        seconds = [
            *(ours, theirs / case.target, spent["sampling"], case.lengths[1] * decode[ONE_ROW]),
            *(spent.get(name, 0) for name in ("scoring", "update", "optimizer")),
            flops["ours"] / rate,
        ]
        return [
            *(case.title, f"{row['threads']}"),
            *(f"{value:.3f}" for value in seconds),
            *(f"{1000 * decode[name]:.1f}" for name in (ALL_ROWS, ONE_ROW)),
            f"{flops['reference'] / flops['ours']:.2f}",
            f"{theirs * rate / flops['least']:.2f}",
        ]

    title = f"## What bounds the cases that miss, {clock} time"
    return [title, _BOUNDS.read_text(encoding="utf-8").rstrip(), _table(header, missed, cells)]


def _verdict(case: Case, ratio: float) -> str:
    return "met" if ratio >= case.target else "**missed**"


def _ratio(case: Case, numbers: Record) -> str:
    median = numbers["ratio"]["median"]
    return f"{1 / median:.2f}" if case.reference == "parts" else f"{median:.2f}"


def _target(case: Case) -> str:
    return f"<= {1 / case.target:.1f}" if case.reference == "parts" else f">= {case.target:g}"


def _range(case: Case, low: float, high: float) -> str:
    if case.reference == "parts":
        low, high = 1 / high, 1 / low
    return f"{low:.2f} to {high:.2f}"


def _table(
    header: str, rows: Sequence[Record], cells: Callable[[Case, Record], Iterable[str]]
) -> str:
    titles = header.split("|")
    body = [cells(CASES[row["case"]], row) for row in rows]
    lines = [titles, ["---"] * len(titles), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

"""From answers to a page: ratios round by round, targets marked met or missed."""

from typing import Any

import pytest

from benchmarks.cases import CASES
from benchmarks.ratios import ratios, spread, summary
from benchmarks.table import line, page


def answer(seconds: float, *, peak: int = 100, flops: int | None = None) -> dict[str, Any]:
    """Of a step that is a quarter sampling; the CPU clock shows half."""
    return {
        "seconds": [seconds, seconds / 2],
        "phases": {"sampling": [seconds / 4, seconds / 8], "optimizer": [0.2, 0.1]},
        "tokens": 3072,
        "flops": flops,
        "peak": peak * 10**6,
        "growth": peak * 10**6 // 2,
    }


def measured(name: str, theirs: list[float], *, peak: int = 100, threads: int = 1) -> dict:
    numbers = summary(
        CASES[name].reference,
        [answer(seconds) for seconds in theirs],
        [answer(1.0, peak=peak) for _ in theirs],
        (answer(9.0, flops=8 * 10**9), answer(9.0, flops=4 * 10**9)),
        ([answer(0.5)], answer(9.0, flops=10 * 10**9)),
        2 * 10**9,
        [answer(1.0) | {"phases": {"all rows": (0.24, 0.12), "one row": (0.048, 0.024)}}],
    )
    sizes = {CASES[name].reference: 64, "ours": 2048}
    return {"case": name, "threads": threads, "micro_batch": sizes} | numbers


RECORD = {
    "machine": {
        "commit": "0123abc",
        "processor": "a processor",
        "cores": 2,
        "memory": 2**34,
        "system": "a system",
        "python": "3.11",
        "packages": {"torch": "2.13.0", "trl": "1.16.0"},
        "load": 0.0,
        "date": "2026-11-22",
    },
    "rounds": 3,
}


def row(text: str, title: str) -> list[str]:
    """The cells of the first line that names a case."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_ratios_are_taken_round_by_round() -> None:
    theirs, ours = [answer(4.0), answer(9.0)], [answer(2.0), answer(3.0)]
    assert ratios("trl", theirs, ours, 0) == [2.0, 3.0]
    assert ratios("trl", theirs, ours, 1) == [2.0, 3.0]


def test_parts_are_counted_with_one_optimizer_update() -> None:
    assert ratios("parts", [answer(2.1)], [answer(1.0)], 0) == [2.0]


def test_spread_of_many_and_of_one() -> None:
    assert [*spread([5.0, 1.0, 2.0, 4.0, 3.0]).values()] == [3.0, 2.0, 4.0, 1.0, 5.0]
    assert [*spread([2.0]).values()] == [2.0] * 5


def test_a_target_is_met_or_marked_as_missed() -> None:
    record = RECORD | {
        "measured": [measured("text", [1.8, 1.9, 2.0]), measured("image64", [2.8, 2.85, 3.0])]
    }
    text = page(record, "wall")
    assert row(text, "GRPO, text")[2:] == [
        ">= 1.9",
        "1.90",
        "1.85 to 1.95",
        "1.80 to 2.00",
        "met",
        "1.000",
        "2048",
    ]
    assert row(text, "GRPO, image 64x64")[6] == "**missed**"


def test_a_mutual_step_is_shown_as_cost_over_its_parts() -> None:
    cheap, dear = (measured("mutual", [parts + 0.1]) for parts in (0.95, 0.8))
    assert "1.05 (target <= 1.1), met" in line(cheap, "wall")
    assert "1.25 (target <= 1.1), **missed**" in line(dear, "wall")


def test_more_memory_than_the_reference_is_marked() -> None:
    record = RECORD | {"measured": [measured("text", [2.0], peak=101)]}
    memory = page(record, "wall").split("growth, MB")[1]
    assert row(memory, "GRPO, text") == ["GRPO, text", "101", "100", "50", "50", "**missed**"]


def test_work_is_set_against_the_least_and_the_matmul_rate() -> None:
    """4 GFLOP in 1 s, at 10 GFLOP in 0.5 s."""
    work = page(RECORD | {"measured": [measured("text", [2.0])]}, "wall").split("| matmul")[1]
    cells = ["GRPO, text", "25%", "0%", "0%", "4.0", "8.0", "2.0", "2.00", "4.00", "20", "20%"]
    assert row(work, "GRPO, text") == cells


def test_a_missed_case_shows_where_its_time_goes() -> None:
    """1 s against 1.8 s with a target of 1.9; a quarter sampling; 4 and 2 GFLOP at 20 GFLOP/s."""
    record = RECORD | {"measured": [measured("text", [1.8]), measured("image64", [3.0])]}
    bounds = page(record, "wall").split("## What bounds")[1]
    assert row(bounds, "GRPO, text") == [
        "GRPO, text",
        "1",
        *("1.000", "0.947", "0.250", "0.048", "0.000", "0.000", "0.200", "0.200"),
        *("10.0", "2.0", "2.00", "18.00"),
    ]
    assert "| GRPO, image 64x64 |" not in bounds
    assert "What bounds the" not in page(RECORD | {"measured": [measured("text", [2.0])]}, "wall")


def test_a_page_names_machine_and_versions_and_has_a_section_per_thread_count() -> None:
    record = RECORD | {"measured": [measured("text", [2.0], threads=n) for n in (1, 2)]}
    text = page(record, "cpu")
    assert "a processor, 2 cores, 16 GiB" in text
    assert "trl 1.16.0" in text
    assert "## 1 thread, cpu time" in text
    assert "## 2 threads, cpu time" in text


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_shares_are_of_the_clock_that_is_shown(clock: str) -> None:
    assert "sampling 25%" in line(measured("text", [2.0]), clock)


def test_what_was_not_measured_is_named() -> None:
    text = page(RECORD | {"measured": [measured(n, [2.0]) for n in CASES if n != "text"]}, "wall")
    assert "Not measured in this run: text with 1 thread; all cases with 2 threads." in text
    everything = [measured(n, [2.0], threads=t) for n in CASES for t in (1, 2)]
    assert "Not measured" not in page(RECORD | {"measured": everything}, "wall")

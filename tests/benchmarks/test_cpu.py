"""The parent: workers in processes of their own, and the command line."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cpu
from benchmarks.cases import CASES, Case
from benchmarks.cpu import (
    OtherWork,
    check_same_work,
    choose_micro_batches,
    measure_all,
    parse,
)
from benchmarks.turns import memory
from benchmarks.worker import WorkerEnded, start
from tests.benchmarks.test_table import RECORD, measured


def test_a_worker_takes_one_measured_step_at_a_time(miniature: Path) -> None:
    with ExitStack() as stack:
        sides = [("matmul", 0), ("steps", 0)]
        worker, decoding = start(stack, sides, CASES["text"], miniature, 1)
        assert worker.ready["threads"] == 1
        plain, counted = worker.take(0), worker.take(1, count_flops=True)
        decoded = decoding.take(0)["phases"]
    worker.stop()  # again, without effect
    assert 0 < decoded["one row"][1] < decoded["all rows"][1]
    assert plain["flops"] is None
    assert counted["flops"] > 0
    assert all(seconds > 0 for seconds in plain["seconds"])
    assert 0 <= plain["growth"] < plain["peak"]


def test_a_worker_that_ends_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerEnded, match="the matmul worker of case text ended"),
        ExitStack() as stack,
    ):
        start(stack, [("matmul", 0)], CASES["text"], tmp_path, 1)


def test_a_killed_run_leaves_what_it_measured_and_is_resumed(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def measure(case: Case, *_: Any, threads: int, **__: Any) -> dict[str, Any]:
        calls.append(f"{case.name} {threads}")
        if case.name == "image64" and len(calls) < 3:
            raise OtherWork("no")
        return measured(case.name, [2.0], threads=threads) | {"micro_batches": {}}

    monkeypatch.setattr(cpu, "measure", measure)
    monkeypatch.setattr(cpu, "try_micro_batches", lambda *_, **__: {})
    monkeypatch.setattr(cpu, "describe_machine", lambda: RECORD["machine"])
    words = ["--cases", "text", "image64", "--threads", "1", "--rounds", "3", "--out"]
    given = parse([*words, str(tmp_path)])
    assert measure_all(given) == ["image64, 1 thread(s): no"]
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "| GRPO, text |" in text
    assert "Not measured in this run: image64, " in text
    given = parse([*words, str(tmp_path), "--resume"])
    assert measure_all(given) == []
    assert calls == ["text 1", "image64 1", "image64 1"]
    assert "| GRPO, image 64x64 |" in (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    given.rounds = 4
    with pytest.raises(SystemExit, match="Measure again without it"):
        measure_all(given)


def test_sides_that_sampled_differently_are_not_compared() -> None:
    check_same_work(CASES["text"], {"tokens": 7}, {"tokens": 7})
    with pytest.raises(OtherWork, match="planned lengths did not hold"):
        check_same_work(CASES["text"], {"tokens": 7}, {"tokens": 8})


def test_ours_may_be_fast_only_within_the_memory_of_the_other() -> None:
    def cost(seconds: float, growth: float) -> dict[str, float]:
        return {"seconds": seconds, "growth": growth}

    theirs = {128: cost(2.0, 9.0), 64: cost(1.0, 5.0)}
    ours = {0: cost(0.5, 6.0), 2048: cost(0.6, 4.0)}
    tried = {"trl": theirs, "ours": ours}
    assert choose_micro_batches(CASES["text"], tried) == {"trl": 64, "ours": 2048}
    tried["ours"] = {0: cost(0.5, 6.0), 2048: cost(0.6, 7.0)}
    assert choose_micro_batches(CASES["text"], tried) == {"trl": 64, "ours": 0}


def test_quick_leaves_out_long_prompts_and_the_second_thread() -> None:
    given = parse(["--quick"])
    assert (given.rounds, given.threads) == (3, [1])
    assert set(CASES) - set(given.cases) == {"image256", "video128"}
    assert (parse([]).rounds, parse([]).threads, parse([]).cases) == (7, [1, 2], list(CASES))


def test_memory_at_most_is_at_least_memory_now() -> None:
    assert memory("VmHWM") >= memory("VmRSS") > 0

"""The parent: workers in processes of their own, and the command line."""

from pathlib import Path

import pytest

from benchmarks.cases import CASES
from benchmarks.cpu import Worker, check_same_work, choose_micro_batches, parse
from benchmarks.turns import memory


def test_a_worker_takes_one_measured_step_at_a_time(miniature: Path) -> None:
    worker = Worker("matmul", CASES["text"], miniature, 1)
    assert worker.ready["threads"] == 1
    plain, counted = worker.take(0), worker.take(1, count_flops=True)
    worker.stop()
    assert plain["flops"] is None
    assert counted["flops"] > 0
    assert all(seconds > 0 for seconds in plain["seconds"])
    assert 0 <= plain["growth"] < plain["peak"]


def test_a_worker_that_ends_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the ours worker of case text ended"):
        Worker("ours", CASES["text"], tmp_path, 1)


def test_sides_that_sampled_differently_are_not_compared() -> None:
    check_same_work(CASES["text"], {"tokens": 7}, {"tokens": 7})
    with pytest.raises(SystemExit, match="planned lengths did not hold"):
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

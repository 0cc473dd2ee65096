"""The turns of a worker: wait for a command, measure one step, report it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Clocks = tuple[float, float]
"""Wall time and CPU time of the process, in seconds."""


class Turns:
    """A conversation with the parent.

    `next` ends the running step, reports it to the parent and blocks until the next one, so only
    one worker computes at a time.
    """

    def __init__(self, parent: Connection) -> None:
        self.step = 0
        self._parent = parent
        self._started: Clocks | None = None
        self._phases: dict[str, Clocks] = {}
        self._tokens = 0
        self._counter: FlopCounterMode | None = None
        self._memory_before = 0
        starts: list[Clocks] = []
        register_optimizer_step_pre_hook(lambda *_: starts.append(_now()))
        register_optimizer_step_post_hook(lambda *_: self._add("optimizer", starts.pop()))

    def start_memory(self) -> None:
        """Measure memory growth from here, before the model is built: imports do not count."""
        self._memory_before = memory("VmRSS")

    def ready(self, **facts: Any) -> None:
        """Report that the model is loaded, with facts for the record."""
        self._parent.send({"threads": torch.get_num_threads(), **facts})

    def next(self) -> bool:
        """Wait for the next step; return False if there is none."""
        if self._started is not None:
            self._report(self._started)
        command = self._parent.recv()
        if command is None:
            return False
        self.step, self._phases, self._tokens = command["step"], {}, 0
        if command["count_flops"]:
            self._counter = flop_counter()
            self._counter.__enter__()
        self._started = _now()
        return True

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        started = _now()
        yield
        self._add(name, started)

    def sampled(self, num_tokens: int) -> None:
        """Count completion tokens that were sampled."""
        self._tokens += num_tokens

    def _report(self, started: Clocks) -> None:
        seconds, flops = _since(started), None
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            flops = self._counter.get_total_flops()
            self._counter = None
        peak = memory("VmHWM")
        memory_use = {"peak": peak, "growth": peak - self._memory_before}
        counts = {"tokens": self._tokens, "flops": flops}
        self._parent.send({"seconds": seconds, "phases": self._phases, **counts, **memory_use})

    def _add(self, name: str, started: Clocks) -> None:
        spent, before = _since(started), self._phases.get(name, (0.0, 0.0))
        self._phases[name] = (before[0] + spent[0], before[1] + spent[1])


def memory(field: str) -> int:
    """Return the bytes this process holds (`VmRSS`) or has held at most (`VmHWM`)."""
    with open("/proc/self/status", encoding="ascii") as status:
        [line] = [line for line in status if line.startswith(field)]
    return int(line.split()[1]) * 1024


def _now() -> Clocks:
    return time.perf_counter(), time.process_time()


def _since(started: Clocks) -> Clocks:
    wall, cpu = _now()
    return wall - started[0], cpu - started[1]


def flop_counter() -> FlopCounterMode:
    """Return torch's counter, extended by the CPU's attention kernels, which it does not count."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    kernels = torch.ops.aten
    custom: Any = {
        kernels._scaled_dot_product_flash_attention_for_cpu: forward,
        kernels._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return FlopCounterMode(display=False, custom_mapping=custom)

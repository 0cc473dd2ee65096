"""One worker's turns: waits for its parent's word, measures one step, answers. Knows no model."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

Clocks = tuple[float, float]
"""Wall and process CPU seconds."""


class Turns:
    """A conversation in JSON lines.

    `next` ends the step that ran, tells the parent about it and blocks until the next one, so only
    one worker computes at a time.
    """

    def __init__(self, incoming: TextIO, outgoing: TextIO) -> None:
        self.step = 0
        self._incoming, self._outgoing = incoming, outgoing
        self._started: Clocks | None = None
        self._phases: dict[str, Clocks] = {}
        self._tokens = 0
        self._counter: FlopCounterMode | None = None
        self._memory_before = 0
        self._watch_optimizer()

    def model_comes_now(self) -> None:
        """Memory is counted from here: imports are not what a step costs."""
        self._memory_before = memory("VmRSS")

    def ready(self, **facts: Any) -> None:
        """The model is loaded; facts are for the record."""
        self._send({"ready": True, "threads": torch.get_num_threads(), **facts})

    def next(self) -> bool:
        """False when the parent has no further step."""
        if self._started is not None:
            self._answer(self._started)
        command = json.loads(self._incoming.readline() or '{"stop": true}')
        if command.get("stop"):
            return False
        self.step, self._phases, self._tokens = command["step"], {}, 0
        if command["count_flops"]:
            self._counter = flop_counter()
            self._counter.__enter__()
        self._started = _now()
        return True

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent inside counts as that phase's."""
        started = _now()
        yield
        self._add(name, started)

    def sampled(self, num_tokens: int) -> None:
        """Completion tokens that were really sampled."""
        self._tokens += num_tokens

    def _answer(self, started: Clocks) -> None:
        ended = _now()
        flops = None
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            flops = self._counter.get_total_flops()
            self._counter = None
        self._send(
            {
                "seconds": _difference(ended, started),
                "phases": self._phases,
                "tokens": self._tokens,
                "flops": flops,
                "peak": memory("VmHWM"),
                "growth": memory("VmHWM") - self._memory_before,
            }
        )

    def _send(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self._outgoing, flush=True)

    def _add(self, name: str, started: Clocks) -> None:
        spent, before = _difference(_now(), started), self._phases.get(name, (0.0, 0.0))
        self._phases[name] = (before[0] + spent[0], before[1] + spent[1])

    def _watch_optimizer(self) -> None:
        started: list[Clocks] = []
        register_optimizer_step_pre_hook(lambda *_: started.append(_now()))
        register_optimizer_step_post_hook(lambda *_: self._add("optimizer", started.pop()))


def memory(field: str) -> int:
    """Bytes this process holds (`VmRSS`) or has held at most (`VmHWM`)."""
    with open("/proc/self/status", encoding="ascii") as status:
        [line] = [line for line in status if line.startswith(field)]
    return int(line.split()[1]) * 1024


def open_turns() -> Turns:
    """Turns over this process's stdin and stdout; whatever else is printed goes to stderr."""
    private = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return Turns(sys.stdin, private)


def _now() -> Clocks:
    return time.perf_counter(), time.process_time()


def _difference(late: Clocks, early: Clocks) -> Clocks:
    return late[0] - early[0], late[1] - early[1]


def flop_counter() -> FlopCounterMode:
    """Torch's counter, taught the CPU's attention kernels: it would count nothing for them."""

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

"""Seconds of a step, method by method and branch by branch, from its work and a machine's rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from copd.planning.cluster.machine import Machine
from copd.planning.cluster.work import (
    Setup,
    Workload,
    complete_flops,
    decode_loops,
    gathered_bytes,
    num_passes,
    read_flops,
    reduced_bytes,
    traffic_bytes,
    update_flops,
)
from copd.recipes.plan import OPD, Stage

_ADAM_BYTES = 36
"""Per weight of an update: clipping and AdamW read and write weights, gradients and moments."""


@dataclass(frozen=True)
class Prediction:
    """One step of a stage, every branch on its own GPUs."""

    methods: Mapping[str, Mapping[str, float]]
    """Seconds of "sample", "score" and "update" by branch."""
    stage: Stage
    traffic: float
    """Seconds of messages, during which no branch works."""
    flops: float
    """Least FLOPs of all branches together: nothing done twice."""
    width: int
    memory: float
    """Bytes of a GPU at least: state and the keys and values of the largest decode loop."""

    @property
    def seconds(self) -> float:
        """Until the last branch has updated."""
        return self.traffic + last_update(self.methods, self.stage)

    @property
    def alone(self) -> float:
        """The same with all branches in one process, one after another."""
        return sum(sum(each.values()) for each in self.methods.values())

    def busy(self, gpus: int) -> float:
        """Share of the GPUs' time in which they do anything."""
        return self.alone * self.width / (gpus * self.seconds)

    def of_peak(self, gpus: int, machine: Machine) -> float:
        """Share of all GPUs' peak that useful work is."""
        return self.flops / (gpus * machine.flops * self.seconds)


def predict(
    machine: Machine,
    setup: Setup,
    stage: Stage,
    loads: Mapping[str, Workload],
    *,
    probes: int,
    top_k: int,
) -> Prediction:
    """One step of a stage; `loads` are batches by domain."""
    sampled = {b: [loads[a.domain] for a in stage.actions_of(b)] for b in stage.trained}
    asked: dict[str, list[Workload]] = {}
    for action in stage.actions:
        if isinstance(action, OPD):
            asked.setdefault(action.teacher, []).append(loads[action.domain])
    methods = seconds_by_method(machine, setup, sampled, asked)
    sent = sum(
        traffic_bytes(
            loads[action.domain], is_cross=isinstance(action, OPD), probes=probes, top_k=top_k
        )
        for action in stage.actions
    )
    widths = setup.widths
    least = sum(
        (1 + setup.backward) * (read_flops(widths, load) + complete_flops(widths, load))
        for own in sampled.values()
        for load in own
    ) + sum(
        read_flops(widths, load) + complete_flops(widths, load)
        for own in asked.values()
        for load in own
    )
    caches = [
        loop.cache_bytes(widths)
        for own in sampled.values()
        for loop in decode_loops(setup, [load.share(setup.width) for load in own])
    ]
    memory = setup.state_bytes + max(caches, default=0.0)
    return Prediction(methods, stage, sent / machine.store, least, setup.width, memory)


def seconds_by_method(
    machine: Machine,
    setup: Setup,
    sampled: Mapping[str, Sequence[Workload]],
    asked: Mapping[str, Sequence[Workload]],
) -> dict[str, dict[str, float]]:
    """Seconds of every method by branch, from the batches it samples and those it is asked about."""

    def shares(loads: Sequence[Workload]) -> list[Workload]:
        return [load.share(setup.width) for load in loads]

    return {
        "sample": {name: sample(machine, setup, shares(own)) for name, own in sampled.items()},
        "score": {name: score(machine, setup, shares(own)) for name, own in asked.items()},
        "update": {name: update(machine, setup, shares(own)) for name, own in sampled.items()},
    }


def last_update(methods: Mapping[str, Mapping[str, float]], stage: Stage) -> float:
    """Seconds of a step on engine "ray", where nobody waits for more than it needs.

    A teacher t begins when it and its students have sampled, a branch b updates when it and its
    teachers have scored:

        scored_t  = max(sample_t, max over students sample_b) + score_t
        updated_b = max(sample_b, scored_b, max over teachers scored_t) + update_b
    """
    scored = {}
    for teacher, seconds in methods["score"].items():
        students = {a.branch for a in stage.actions if isinstance(a, OPD) and a.teacher == teacher}
        waits = [methods["sample"].get(name, 0.0) for name in (teacher, *students)]
        scored[teacher] = max(waits) + seconds
    return max(
        max(methods["sample"][name], *(scored.get(n, 0.0) for n in (name, *stage.neighbours(name))))
        + seconds
        for name, seconds in methods["update"].items()
    )


def sample(machine: Machine, setup: Setup, loads: Sequence[Workload]) -> float:
    """Prompts read, then loops of decode steps, each bound by memory or by matmuls."""
    widths = setup.widths
    seconds = sum(read_flops(widths, load) for load in loads) / _rate(machine, "pass")
    seconds += machine.prompt_seconds * sum(load.prompts for load in loads)
    for loop in decode_loops(setup, loads):
        reading = loop.bytes_read(widths) / (machine.bandwidth * machine.bandwidth_efficiency)
        computing = loop.flops(widths) / _rate(machine, "decode")
        seconds += loop.steps * widths.num_layers * machine.layer_seconds
        seconds += widths.num_layers * machine.pass_seconds + max(reading, computing)
    return seconds + gathered_bytes(setup) / _link(machine, setup.width)


def score(machine: Machine, setup: Setup, loads: Sequence[Workload]) -> float:
    """A pass over prompts and completions of every micro-batch."""
    widths = setup.widths
    flops = sum(read_flops(widths, load) + complete_flops(widths, load) for load in loads)
    passes = sum(num_passes(setup, load) for load in loads)
    started = 2 * passes * widths.num_layers * machine.pass_seconds
    sent = passes * gathered_bytes(setup) / _link(machine, setup.width)
    return flops / _rate(machine, "pass") + started + sent


def update(machine: Machine, setup: Setup, loads: Sequence[Workload]) -> float:
    """Forward and backward of every micro-batch, then the optimizer on its part of the weights."""
    widths = setup.widths
    passes = sum(num_passes(setup, load) for load in loads)
    computing = update_flops(setup, loads) / _rate(machine, "train")
    started = (1 + setup.backward) * passes * widths.num_layers * machine.pass_seconds
    sent = passes * (2 * gathered_bytes(setup) + reduced_bytes(setup))
    moved = _ADAM_BYTES * setup.num_trained / setup.width
    stepping = moved / (machine.bandwidth * machine.optimizer_efficiency)
    return computing + started + sent / _link(machine, setup.width) + stepping


def _rate(machine: Machine, kind: Literal["pass", "train", "decode"]) -> float:
    share = {
        "pass": machine.pass_efficiency,
        "train": machine.train_efficiency,
        "decode": machine.decode_efficiency,
    }[kind]
    return machine.flops * share


def _link(machine: Machine, width: int) -> float:
    """Bytes per second of a collective; beyond a node the network may be the narrower way."""
    if width == 1:
        return math.inf
    peak = machine.links if width <= machine.node_gpus else min(machine.links, machine.network)
    return peak * machine.link_efficiency

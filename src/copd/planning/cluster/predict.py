"""Seconds of a step, method by method and branch by branch, from its work and a machine's rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from copd.planning.cluster.machine import Machine
from copd.planning.cluster.work import (
    Setup,
    complete_flops,
    loop_bytes,
    loop_steps,
    pass_flops,
    read_flops,
    traffic_bytes,
    update_flops,
)
from copd.planning.workload import BranchStep, Workload
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
    """Least FLOPs of all branches together: nothing is computed twice."""
    width: int

    @property
    def seconds(self) -> float:
        """Seconds until the last branch has updated."""
        return self.traffic + last_update(self.methods, self.stage)

    @property
    def alone(self) -> float:
        """Seconds with all branches in one process, one after another."""
        return sum(sum(each.values()) for each in self.methods.values())

    def busy(self, gpus: int) -> float:
        """Return the share of the GPUs' time in which they work."""
        return self.alone * self.width / (gpus * self.seconds)

    def of_peak(self, gpus: int, machine: Machine) -> float:
        """Return the share of all GPUs' peak that useful work is."""
        return self.flops / (gpus * machine.flops * self.seconds)


def predict(
    machine: Machine,
    setup: Setup,
    stage: Stage,
    workloads: Mapping[str, Workload],
    *,
    probes: int,
    top_k: int,
) -> Prediction:
    """Predict one step of a stage from the batches of every domain."""
    teachers = [action.teacher for action in stage.actions if isinstance(action, OPD)]
    names = dict.fromkeys([*stage.trained, *teachers])
    shares = {name: BranchStep.find(stage, name, workloads, setup.width) for name in names}
    sampling = {name: step.sampled for name, step in shares.items() if step.sampled}
    methods = {
        "sample": {n: sample(machine, setup, loads) for n, loads in sampling.items()},
        "score": {n: score(machine, setup, s.scored) for n, s in shares.items() if s.scored},
        "update": {n: update(machine, setup, loads) for n, loads in sampling.items()},
    }
    sent = flops = 0.0
    for action in stage.actions:
        load, is_cross = workloads[action.domain], isinstance(action, OPD)
        sent += traffic_bytes(load, is_cross=is_cross, probes=probes, top_k=top_k)
        flops += (1 + setup.backward + is_cross) * pass_flops(setup.shapes, [load])
    return Prediction(methods, stage, sent / machine.store, flops, setup.width)


def last_update(methods: Mapping[str, Mapping[str, float]], stage: Stage) -> float:
    """Return the seconds of a step on engine "ray", where nobody waits for more than it needs.

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
    """Return the seconds of reading prompts and of decode loops, bound by memory or by matmuls."""
    shapes, rate = setup.shapes, machine.flops * machine.decode_efficiency
    prompts = sum(read_flops(shapes, load) for load in loads)
    seconds = prompts / (machine.flops * machine.pass_efficiency)
    seconds += machine.prompt_seconds * sum(load.num_prompts for load in loads)
    for loop in setup.loops(loads):
        reading = loop_bytes(shapes, loop) / (machine.bandwidth * machine.bandwidth_efficiency)
        computing = sum(complete_flops(shapes, load) for load in loop) / rate
        started = loop_steps(loop) * machine.layer_seconds + machine.pass_seconds
        seconds += shapes.layers * started + max(reading, computing)
    return seconds + _collective(machine, setup.width, setup.gathered_bytes)


def score(machine: Machine, setup: Setup, loads: Sequence[Workload]) -> float:
    """Return the seconds of a pass over prompts and completions of every micro-batch."""
    computing = pass_flops(setup.shapes, loads) / (machine.flops * machine.pass_efficiency)
    passes = setup.num_passes(loads)
    started = 2 * passes * setup.shapes.layers * machine.pass_seconds
    return computing + started + _collective(machine, setup.width, passes * setup.gathered_bytes)


def update(machine: Machine, setup: Setup, loads: Sequence[Workload]) -> float:
    """Return the seconds of forward, backward and the optimizer on a rank's share of weights."""
    passes = setup.num_passes(loads)
    computing = update_flops(setup, loads) / (machine.flops * machine.train_efficiency)
    started = (1 + setup.backward) * passes * setup.shapes.layers * machine.pass_seconds
    sent = passes * (2 * setup.gathered_bytes + setup.reduced_bytes)
    moved = _ADAM_BYTES * setup.num_trained / setup.width
    stepping = moved / (machine.bandwidth * machine.optimizer_efficiency)
    return computing + started + _collective(machine, setup.width, sent) + stepping


def _collective(machine: Machine, width: int, num_bytes: float) -> float:
    """Return the seconds of collectives; beyond a node the network may be the narrower way."""
    peak = machine.links if width <= machine.node_gpus else min(machine.links, machine.network)
    return num_bytes / (peak * machine.link_efficiency)

"""A prediction as text for a terminal, with everything it assumes, and as plain values."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from copd.planning.cluster.machine import Machine
from copd.planning.cluster.predict import Prediction, predict
from copd.planning.cluster.work import Setup, Workload
from copd.recipes.plan import Plan, Stage

_WIDTH = 100


@dataclass(frozen=True)
class Cluster:
    """What is asked about: a plan's stages on a kind of machine."""

    model: str
    machine: Machine
    setup: Setup
    """Of a branch on one GPU."""
    plan: Plan
    loads: Mapping[str, Workload]
    """By domain."""
    probes: int
    top_k: int

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every kind of stage once."""
        return tuple({stage.name: stage for stage in self.plan.stages}.values())

    def width(self, gpus: int) -> int:
        """GPUs of each branch; what is left over stays idle."""
        return gpus // len(self.plan.branches)

    def at(self, stage: Stage, width: int) -> Prediction:
        """A step of a stage with branches of so many GPUs."""
        setup = replace(self.setup, width=width)
        return predict(self.machine, setup, stage, self.loads, probes=self.probes, top_k=self.top_k)

    def hours(self, width: int) -> float:
        """All steps of the plan, without evaluations, checkpoints and merge."""
        seconds = {stage.name: self.at(stage, width).seconds for stage in self.stages}
        return sum(stage.steps * seconds[stage.name] for stage in self.plan.stages) / 3600


def predicted(cluster: Cluster, gpus: Sequence[int]) -> list[dict[str, Any]]:
    """The same numbers as plain values."""
    return [
        {
            "stage": stage.name,
            "gpus": count,
            "width": cluster.width(count),
            "seconds": found.seconds,
            "methods": found.methods,
            "messages": found.traffic,
            "busy": found.busy(count),
            "of_peak": found.of_peak(count, cluster.machine),
            "memory": found.memory,
        }
        for stage in cluster.stages
        for count in gpus
        for found in [cluster.at(stage, cluster.width(count))]
    ]


def describe_cluster(cluster: Cluster, gpus: Sequence[int]) -> str:
    """Seconds of a step on so many GPUs, stage by stage, and where the limit is."""
    machine, setup = cluster.machine, cluster.setup
    weights = setup.widths.num_parameters
    size = f"{weights / 1e9:.1f} B" if weights >= 1e9 else f"{weights / 1e6:.1f} M"
    head = (
        f"Predicted, not measured: {cluster.model} ({size} weights) on {machine.name}, "
        f"{len(cluster.plan.branches)} branches. Seconds of a step:"
    )
    rows = [_COLUMNS, *(_row(cluster, stage, n) for stage in cluster.stages for n in gpus)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    hours = ", ".join(f"{cluster.hours(cluster.width(n)):,.0f} h on {n}" for n in gpus)
    notes = [
        "Busy: share of the GPUs' time in which they work. Peak: useful share of all peaks. "
        "Memory: state and the largest decode loop of one GPU; activations come on top.",
        f"All {cluster.plan.total_steps:,} steps: {hours} GPUs.",
        *_limits(cluster, gpus),
    ]
    lines = [*_wrapped(head), "", *table, "", *(line for note in notes for line in _wrapped(note))]
    return "\n".join([*lines, "", *_assumptions(cluster)])


_COLUMNS = (
    *("stage", "GPUs", "a branch", "sample", "score", "update", "messages", "step", "slowest"),
    *("busy", "peak", "memory"),
)


def _row(cluster: Cluster, stage: Stage, gpus: int) -> tuple[str, ...]:
    found = cluster.at(stage, cluster.width(gpus))
    slowest = max((s, name) for name, s in found.methods["sample"].items())[1]
    fits = "" if found.memory <= cluster.machine.memory else " full"
    return (
        stage.name,
        f"{gpus:,}",
        f"{found.width:,}",
        *(f"{max(each.values(), default=0.0):,.1f}" for each in found.methods.values()),
        f"{found.traffic:,.1f}",
        f"{found.seconds:,.1f}",
        slowest,
        f"{found.busy(gpus):.0%}",
        f"{found.of_peak(gpus, cluster.machine):.1%}",
        f"{found.memory / 1e9:,.0f} GB{fits}",
    )


def _limits(cluster: Cluster, gpus: Sequence[int]) -> Iterator[str]:
    """Where more GPUs do not help any more, and where a branch does not fit."""
    machine = cluster.machine
    widest = max(load.prompts for load in cluster.loads.values())
    for stage in cluster.stages:
        found = cluster.at(stage, widest)
        sampling = max(found.methods["sample"].values())
        yield (
            f"Limit of {stage.name}: with a problem for every GPU ({widest} a branch) a step takes "
            f"{found.seconds:,.1f} s, {sampling / found.seconds:.0%} of it sampling: the longest "
            "completion is written token by token."
        )
    stage = cluster.stages[-1]
    full = [n for n in gpus if cluster.at(stage, cluster.width(n)).memory > machine.memory]
    if full:
        yield (
            f"Full: more than the {machine.memory / 1e9:.0f} GB of {machine.name} on "
            f"{', '.join(map(str, full))} GPUs. Take more GPUs a branch, a smaller "
            "rollout.max_rows, adapters, or 8-bit moments."
        )


def _assumptions(cluster: Cluster) -> list[str]:
    machine = {k: f"{v:.4g}" for k, v in asdict(cluster.machine).items() if k != "name"}
    own = "Assumed, each to be changed by --assume NAME=VALUE: "
    named = ", ".join(f"{name}={value}" for name, value in machine.items())
    lines = _wrapped(f"{own}{named}")
    for domain, load in cluster.loads.items():
        lengths, patches = load.lengths, sum(load.frames)
        visual = patches // cluster.setup.widths.patches_per_token
        spread = max(0.0, lengths.square / lengths.mean**2 - 1) ** 0.5
        lines += _wrapped(
            f"Domain {domain}: {load.prompts} problems, {load.group_size} completions each, "
            f"{domain}.text_tokens={load.prompt_tokens - visual}, {domain}.visual_tokens={visual} "
            f"in {domain}.pictures={len(load.frames)}; completions of "
            f"{domain}.mean={lengths.mean:.0f} tokens, {domain}.deviation={spread:.2g} of it, the "
            f"longest {lengths.longest:.0f}."
        )
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent="  ", break_long_words=False)

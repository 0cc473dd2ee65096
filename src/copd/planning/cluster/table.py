"""A prediction as text for a terminal, with everything it assumes, and as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from copd.config import RayEngineConfig
from copd.planning.cluster.machine import Machine
from copd.planning.cluster.predict import Prediction, predict
from copd.planning.cluster.work import Setup
from copd.planning.cost import align
from copd.planning.memory import estimate_memory
from copd.planning.report import Report, format_size
from copd.planning.shapes import Shapes
from copd.planning.workload import wrapped
from copd.recipes.plan import Stage

_COLUMNS = (
    *("stage", "GPUs", "a branch", "sample", "score", "update", "messages", "step", "slowest"),
    *("busy", "peak"),
)


@dataclass(frozen=True)
class Cluster:
    """A plan's stages on some numbers of one kind of machine, every branch on its own GPUs."""

    report: Report
    machine: Machine
    gpus: Sequence[int]

    @cached_property
    def shapes(self) -> Shapes:
        """The model."""
        assert self.report.shapes is not None, "checked by the command"
        return self.report.shapes

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Every kind of stage once."""
        return tuple({stage.name: stage for stage in self.report.plan.stages}.values())

    def width(self, gpus: int) -> int:
        """Return the GPUs of each branch; what is left over stays idle."""
        return gpus // len(self.report.plan.branches)

    def at(self, stage: Stage, width: int) -> Prediction:
        """Predict a step of a stage with branches of so many GPUs."""
        config = self.report.config
        return predict(
            self.machine,
            Setup.of(config, self.shapes, width),
            stage,
            self.report.workloads,
            probes=config.monitor.num_probe_tokens,
            top_k=config.monitor.score_top_k,
        )

    def hours(self, width: int) -> float:
        """Return all steps of the plan, without evaluations, checkpoints and merge."""
        seconds = {stage.name: self.at(stage, width).seconds for stage in self.stages}
        return sum(s.steps * seconds[s.name] for s in self.report.plan.stages) / 3600

    def memory(self, width: int) -> dict[str, int]:
        """Return the peak of a GPU of each branch, as the memory report estimates it."""
        config, plan = self.report.config, self.report.plan
        engine = RayEngineConfig(num_gpus=1.0, ranks_per_branch=width)
        found = estimate_memory(
            config.model_copy(update={"engine": engine}),
            plan,
            self.shapes,
            self.report.workloads,
            device="cuda",
        )
        return {name: memory.peak for name, memory in found.items()}

    def to_list(self) -> list[dict[str, Any]]:
        """Return the prediction as plain values."""
        return [
            {
                "stage": stage.name,
                "gpus": count,
                "width": self.width(count),
                "seconds": found.seconds,
                "methods": found.methods,
                "messages": found.traffic,
                "busy": found.busy(count),
                "of_peak": found.of_peak(count, self.machine),
                "memory": self.memory(self.width(count)),
            }
            for stage in self.stages
            for count in self.gpus
            for found in [self.at(stage, self.width(count))]
        ]

    def describe(self) -> str:
        """Describe seconds and memory of a step, and where the limit is, for a terminal."""
        weights, plan = self.shapes.parameters, self.report.plan
        size = f"{weights / 1e9:.1f} B" if weights >= 1e9 else f"{weights / 1e6:.1f} M"
        head = (
            f"Predicted, not measured: {self.report.config.model.path} ({size} weights) on "
            f"{self.machine.name}, {len(plan.branches)} branches. Seconds of a step:"
        )
        hours = ", ".join(f"{self.hours(self.width(n)):,.0f} h on {n}" for n in self.gpus)
        rates = (f"{k}={v:.4g}" for k, v in asdict(self.machine).items() if k != "name")
        notes = [
            "Busy: share of the GPUs' time in which they work. Peak: useful share of all peaks.",
            f"All {plan.total_steps:,} steps: {hours} GPUs.",
            *map(self._limit, self.stages),
        ]
        assumed = f"Assumed, each to be changed by --assume NAME=VALUE: {', '.join(rates)}, and "
        return "\n".join(
            [
                *wrapped(head),
                "",
                *align([_COLUMNS, *self._rows()]),
                "",
                *(line for note in notes for line in wrapped(note)),
                "",
                f"Memory of a GPU, of {format_size(int(self.machine.memory))}:",
                "",
                *align([*self._memory_rows()]),
                "",
                *wrapped(f"{assumed}what is counted of domains above."),
            ]
        )

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for stage in self.stages:
            for gpus in self.gpus:
                found = self.at(stage, self.width(gpus))
                yield (
                    stage.name,
                    f"{gpus:,}",
                    f"{found.width:,}",
                    *(f"{max(s.values(), default=0.0):,.1f}" for s in found.methods.values()),
                    f"{found.traffic:,.1f}",
                    f"{found.seconds:,.1f}",
                    max((s, name) for name, s in found.methods["sample"].items())[1],
                    f"{found.busy(gpus):.0%}",
                    f"{found.of_peak(gpus, self.machine):.1%}",
                )

    def _memory_rows(self) -> Iterator[tuple[str, ...]]:
        yield ("GPUs", "a branch", *self.report.plan.branches, "")
        for gpus in self.gpus:
            peaks = self.memory(self.width(gpus)).values()
            fits = max(peaks) <= self.machine.memory
            sizes = map(format_size, peaks)
            yield (f"{gpus:,}", f"{self.width(gpus):,}", *sizes, "" if fits else "full")

    def _limit(self, stage: Stage) -> str:
        """Say where more GPUs do not help any more."""
        widest = max(load.num_prompts for load in self.report.workloads.values())
        found = self.at(stage, widest)
        sampling = max(found.methods["sample"].values())
        return (
            f"Limit of {stage.name}: with a problem for every GPU ({widest} a branch) a step takes "
            f"{found.seconds:,.1f} s, {sampling / found.seconds:.0%} of it sampling: the longest "
            "completion is written token by token."
        )

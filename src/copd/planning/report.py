"""What `copd plan` says about memory: what a run holds, whether it fits, what to change if not."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from copd.config import Config, RayEngineConfig
from copd.planning.memory import ALL, Memory, estimate_memory
from copd.planning.remedies import Change, single_changes, together
from copd.planning.shapes import Shapes, find_shapes
from copd.planning.workload import Expected, Workload, describe_workloads, find_workloads, wrapped
from copd.recipes import Plan, build_plan

_GLIBC = (
    "Freed blocks that glibc keeps come on top, up to half as much again; "
    "MALLOC_MMAP_THRESHOLD_=65536 makes it give them back."
)
"""Of a CPU: measured in docs/memory.md, in use and as any process."""


@dataclass(frozen=True)
class Report:
    """The memory of a run, if the shapes of its model are known."""

    config: Config
    plan: Plan
    device: str
    workloads: Mapping[str, Workload]
    """By domain."""
    capacity: int | None
    """Bytes of the device, if known."""
    shapes: Shapes | None = None
    memory: Mapping[str, Memory] = field(default_factory=dict)
    """Of each process: of a branch, or of all."""
    why: str = ""
    """Why the shapes are not known."""
    changes: Sequence[Change] = ()
    """What would save memory; empty where everything fits."""
    combined: Sequence[Change] = ()
    """Where no single change is enough: one on top of the other."""

    @property
    def largest(self) -> str:
        """The process that needs most."""
        return max(self.memory, key=lambda name: self.memory[name].peak)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, in bytes; details are those of the largest process."""
        values: dict[str, Any] = {"device": self.device, "capacity": self.capacity}
        if self.memory:
            memory = self.memory[self.largest]
            values |= {
                **asdict(memory),
                "peak": memory.peak,
                "peaks": {name: each.peak for name, each in self.memory.items()},
                "workloads": {name: asdict(load) for name, load in self.workloads.items()},
            }
        for name, changes in (("changes", self.changes), ("together", self.combined)):
            values[name] = [{"setting": c.setting, "peak": c.peak} for c in changes]
        return values

    def describe(self) -> str:
        """Return text for a terminal."""
        if not self.memory:
            return "\n".join(wrapped(_unknown(self.config, self.why), ""))
        return "\n".join([*_table(self), "", *wrapped(_verdict(self), "")])


def memory_report(
    config: Config, plan: Plan, *, capacity: int | None = None, expected: Expected | None = None
) -> Report:
    """Estimate the memory of a plan, and compare it with what there is.

    Args:
        config: The run.
        plan: Its plan.
        capacity: Bytes of the device; by default what this machine has, if it is a CPU.
        expected: What is expected of prompts and completions.

    Returns:
        The report; without memory if the model's sizes are not known.

    Raises:
        ValueError: If what is expected contradicts itself or the configuration.
    """
    mean, limit = expected and expected.completion_tokens, config.rollout.max_completion_tokens
    if mean is not None and not 1 <= mean <= limit:
        raise ValueError(
            f"completion_tokens must be between 1 and rollout.max_completion_tokens = {limit}: "
            f"got {mean}. Pass the mean length you expect."
        )
    device = _device(config)
    if capacity is None and device == "cpu":
        capacity = _main_memory()
    try:
        shapes, why = find_shapes(config.model.path), ""
    except ValueError as error:
        shapes, why = None, str(error)
    workloads = find_workloads(config, shapes, expected)
    report = Report(config, plan, device, workloads, capacity, shapes, why=why)
    if shapes is None:
        return report
    memory = estimate_memory(config, plan, shapes, workloads, device=device)

    def peak(changed: Config) -> int:
        loads = find_workloads(changed, shapes, expected)
        found = estimate_memory(changed, build_plan(changed), shapes, loads, device=device)
        return sum(_sharing(changed, found, device))

    report = replace(report, memory=memory)
    if capacity is None or peak(config) <= capacity:
        return report
    sees = shapes.tower is not None
    changes = single_changes(config, capacity, peak, sees=sees, device=device)
    is_enough = any(change.peak <= capacity for change in changes)
    combined = [] if is_enough else together(config, capacity, peak, changes)
    return replace(report, changes=changes, combined=combined)


def parse_size(text: str) -> int:
    """Parse a size of memory.

    Args:
        text: A number and a unit, such as "80GB", "24 GiB" or "512MB".

    Returns:
        Bytes.

    Raises:
        ValueError: If the text is no such size.
    """
    found = re.fullmatch(r"([0-9]+\.?[0-9]*)([KMG])(I?)B", text.replace(" ", "").upper())
    if found is None or float(found[1]) == 0:
        raise ValueError(
            f"a size of memory must be a number and a unit: got {text!r}, expected such as 80GB or "
            "24GiB. Correct --memory."
        )
    return int(float(found[1]) * (1024 if found[3] else 1000) ** ("KMG".index(found[2]) + 1))


def format_size(num_bytes: int) -> str:
    """Format bytes in GB of 10^9, small ones in MB."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"


def _device(config: Config) -> str:
    """Return the device that the run would choose."""
    if config.model.device != "auto":
        return config.model.device
    on_gpu = isinstance(config.engine, RayEngineConfig) and config.engine.num_gpus > 0
    return "cuda" if on_gpu or Path("/proc/driver/nvidia/gpus").is_dir() else "cpu"


def _main_memory() -> int | None:
    """Return what this machine has, or what its container may use."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    word = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(total, int(word)) if word.isdecimal() else total


def _sharing(config: Config, memory: Mapping[str, Memory], device: str) -> list[int]:
    """Return the peaks of processes that share the capacity: on one machine, or on one GPU."""
    peaks = sorted((each.peak for each in memory.values()), reverse=True)
    if not isinstance(config.engine, RayEngineConfig):
        return peaks
    if device == "cuda":
        share = config.engine.num_gpus
        return peaks[: max(1, int(1 / share)) if share else 1]
    return peaks * config.engine.ranks_per_branch


def _table(report: Report) -> list[str]:
    """Return what the largest process holds, line by line, and the peaks of all."""
    model, memory = report.config.model, report.memory[report.largest]
    one = "one base, adapters" if memory.is_shared else f"{memory.num_policies} x all weights"
    stale = f", {memory.num_snapshots} x a snapshot to score" if memory.num_snapshots else ""
    rows = [
        ("weights", memory.weights, f"float32, {one}{stale}"),
        ("optimizer", memory.optimizer, f"{memory.num_trained} x moments of what is trained"),
        ("gradients", memory.gradients, "of the branch that is updated"),
        ("graphs of prompts", memory.prompts, "from sampling to update"),
        ("KV cache", memory.cache, "of one branch while it samples"),
        ("activations", memory.activations, "of one micro-batch"),
        ("logits", memory.logits, "the largest moment in the update"),
        ("pictures", memory.pictures, "of cached prompts"),
    ]
    if memory.kernels:
        rows.append(("compiled products", memory.kernels, "in bfloat16, cached by oneDNN"))
    if memory.gathered:
        rows.append(("gathered weights", memory.gathered, "of all ranks, in every phase"))
    rows += [("peak, " + name, size, "") for name, size in memory.phases.items()]
    where = "GPU" if report.device == "cuda" else "CPU"
    whose = "" if ALL in report.memory else f" by branch {report.largest}, which needs most"
    peaks = "; ".join(f"{name} {format_size(m.peak)}" for name, m in report.memory.items())
    return [
        f"Memory on a {where}{whose}, passes in {model.dtype}:",
        *(f"  {name:17}  {format_size(size):>11}  {note}".rstrip() for name, size, note in rows),
        *([] if ALL in report.memory else wrapped(f"Peaks by branch: {peaks}.")),
        *wrapped(
            "Counted with these prompts and completions; --prompt-tokens, --visual-tokens and "
            "--completion-tokens say what you expect, with --cluster --assume that of one domain.",
            "",
        ),
        *describe_workloads(report.workloads),
        *(wrapped(_GLIBC, "") if report.device == "cpu" else []),
    ]


def _verdict(report: Report) -> str:
    """Say whether it fits, and what to change."""
    peaks = _sharing(report.config, report.memory, report.device)
    peak, capacity = sum(peaks), report.capacity
    needed = f"The run needs {format_size(peak)}" + f" in {len(peaks)} processes" * (len(peaks) > 1)
    if capacity is None:
        return f"{needed}. Say what the device has (--memory 80GB) to learn whether it fits."
    if peak <= capacity:
        return f"{needed} of {format_size(capacity)}: it fits."
    head = f"{needed} and the device has {format_size(capacity)}: it does not fit."
    fitting = [change for change in report.changes if change.peak <= capacity]
    if fitting:
        return f"{head} Any one of these is enough: {_listed(fitting, peak)}."
    if report.combined and report.combined[-1].peak <= capacity:
        words = " and ".join(change.setting for change in report.combined)
        left = format_size(report.combined[-1].peak)
        return f"{head} No single change is enough; together: {words} ({left})."
    if not report.changes:
        return f"{head} No setting saves memory: use a smaller model or a larger device."
    return (
        f"{head} No change is enough, nor all of them. Each saves: "
        f"{_listed(report.changes, peak)}. Use a smaller model, or a larger device."
    )


def _listed(changes: Iterable[Change], peak: int) -> str:
    return "; ".join(
        f"{c.setting} ({format_size(c.peak)}, saves {format_size(peak - c.peak)})" for c in changes
    )


def _unknown(config: Config, why: str) -> str:
    """Return what is known without shapes."""
    num, moments = len(build_plan(config).branches), 2 if "8bit" in config.optimizer.type else 8
    size = f"{num * (4 + moments) + 4} GB per billion weights"
    known = f"the weights, moments and one gradient of {num} branches take {size}"
    if config.model.branches == "lora":
        known = "one copy of the weights takes 4 GB per billion, adapters a few percent on top"
    return f"Memory: {why} Without activations and cache, {known}."

"""What `copd plan` says about memory: what is held, whether it fits, and what to change if not."""

from __future__ import annotations

import os
import textwrap
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from copd.config import Config, RayEngineConfig
from copd.planning.find import find_files
from copd.planning.memory import Memory, estimate_memory
from copd.planning.prompts import find_lengths
from copd.planning.remedies import Change, single_changes, together
from copd.planning.shapes import Shapes, read_shapes
from copd.planning.workload import Lengths
from copd.recipes import Plan, build_plan

_WIDTH = 100
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Report:
    """The memory of a run, where its model is known."""

    config: Config
    device: str
    lengths: Lengths | None
    memory: Memory | None
    """Both None for a model whose shapes are not known."""
    capacity: int | None
    """Bytes of the device, where they are known."""
    why: str = ""
    """Why the shapes are not known."""
    changes: tuple[Change, ...] = ()
    """What would save memory; empty where everything fits."""
    combined: tuple[Change, ...] = ()
    """Where no single change is enough: one on top of the other."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in bytes."""
        saved = [{"setting": c.setting, "peak": c.peak} for c in self.changes]
        return {
            "device": self.device,
            "capacity": self.capacity,
            "lengths": self.lengths and asdict(self.lengths),
            **({} if self.memory is None else {**asdict(self.memory), "peak": self.memory.peak}),
            "changes": saved,
            "together": [{"setting": c.setting, "peak": c.peak} for c in self.combined],
        }

    def describe(self) -> str:
        """Text for a terminal."""
        if self.memory is None or self.lengths is None:
            return "\n".join(_wrapped(_unknown(self.config, self.why)))
        return "\n".join(
            [*_table(self, self.memory, self.lengths), "", *_wrapped(_verdict(self, self.memory))]
        )


def memory_report(
    config: Config,
    plan: Plan,
    *,
    capacity: int | None = None,
    prompt_tokens: int | None = None,
    visual_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Report:
    """The memory of a plan, compared with `capacity` or with what this machine has.

    Lengths of prompts that nobody tells are assumed; completions have their limit.
    """
    device = _device(config)
    known = capacity if capacity is not None or device != "cpu" else _main_memory()
    try:
        shapes = _shapes(config.model.path)
    except ValueError as error:
        return Report(config, device, None, None, known, str(error))
    lengths = find_lengths(
        config,
        shapes,
        prompt_tokens=prompt_tokens,
        visual_tokens=visual_tokens,
        completion_tokens=completion_tokens,
    )

    def peak(changed: Config) -> int:
        shorter = min(lengths.completion, changed.rollout.max_completion_tokens)
        own = replace(lengths, completion=shorter)
        found = estimate_memory(changed, build_plan(changed), shapes, own, device=device).peak
        return found * _processes(changed, plan, device)

    memory = estimate_memory(config, plan, shapes, lengths, device=device)
    report = Report(config, device, lengths, memory, known)
    if known is None or peak(config) <= known:
        return report
    sees = shapes.tower is not None
    changes = single_changes(config, known, peak, sees=sees, device=device)
    enough = any(change.peak <= known for change in changes)
    combined = [] if enough else together(config, known, peak, changes)
    return replace(report, changes=tuple(changes), combined=tuple(combined))


def _shapes(model: str) -> Shapes:
    files = find_files(model)
    if files is None:
        raise ValueError(
            f"{model!r} is not on this machine, so its sizes are not known. Download it, or name a "
            "folder with its config.json."
        )
    return read_shapes(files)


def parse_size(text: str) -> int:
    """Bytes of a size such as "80GB", "24 GiB" or "512MB"."""
    word = text.replace(" ", "").upper()
    for unit, size in _UNITS.items():
        number = word.removesuffix(unit)
        if number != word and number.replace(".", "", 1).isdecimal() and float(number) > 0:
            return int(float(number) * size)
    raise ValueError(
        f"a size of memory must be a number and a unit: got {text!r}, expected such as 80GB or "
        "24GiB. Correct --memory."
    )


def _device(config: Config) -> str:
    """As the run would choose it; whether there is a GPU is told by its driver."""
    if config.model.device != "auto":
        return config.model.device
    return "cuda" if Path("/proc/driver/nvidia/gpus").is_dir() else "cpu"


def _main_memory() -> int | None:
    """What this machine has, or what its container may use."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not told on every system
        return None
    limit = Path("/sys/fs/cgroup/memory.max")
    word = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    return min(total, int(word)) if word.isdecimal() else total


def _processes(config: Config, plan: Plan, device: str) -> int:
    """How many such processes share the capacity: Ray's branches share a machine, or a GPU."""
    if not isinstance(config.engine, RayEngineConfig):
        return 1
    if device == "cuda":
        share = config.engine.num_gpus
        return max(1, int(1 / share)) if share else 1
    return len(plan.branches)


_GLIBC = (
    "Freed blocks that glibc keeps come on top, up to half as much again; "
    "MALLOC_MMAP_THRESHOLD_=65536 makes it give them back."
)
"""Of a CPU: measured in docs/memory.md, in use and as any process."""


def _table(report: Report, memory: Memory, lengths: Lengths) -> list[str]:
    """What is held, line by line."""
    model = report.config.model
    one = "one base, adapters" if memory.is_shared else f"{memory.num_policies} x all weights"
    kept = f", {memory.num_kept} x a copy to be asked" if memory.num_kept else ""
    rows = [
        ("weights", memory.weights, f"float32, {one}{kept}"),
        ("optimizer", memory.optimizer, f"{memory.num_trained} x moments of what is trained"),
        ("gradients", memory.gradients, "of the branch that is updated"),
        ("graphs of prompts", memory.prompts, "kept from sampling to update"),
        ("KV cache", memory.cache, "of one branch while it samples"),
        ("activations", memory.activations, "of one micro-batch"),
        ("logits", memory.logits, "the largest moment in the update"),
        ("pictures", memory.pictures, "prompts that are remembered"),
    ]
    if memory.kernels:
        rows.append(("compiled products", memory.kernels, "in bfloat16, kept by oneDNN"))
    rows += [("peak, " + name, size, "") for name, size in memory.phases.items()]
    wide = max(len(name) for name, *_ in rows)
    where = "GPU" if report.device == "cuda" else "CPU"
    each = ", per branch" if isinstance(report.config.engine, RayEngineConfig) else ""
    return [
        f"Memory on a {where}{each}, passes in {model.dtype}:",
        *(f"  {name.ljust(wide)}  {_size(size):>9}  {note}".rstrip() for name, size, note in rows),
        *_wrapped(
            f"Counted with prompts of {lengths.prompt:,} tokens ({lengths.visual:,} of them pixels)"
            f" and completions of {lengths.completion:,}; --prompt-tokens, --visual-tokens and "
            "--completion-tokens say what you expect."
        ),
        *(_wrapped(_GLIBC) if report.device == "cpu" else []),
    ]


def _verdict(report: Report, memory: Memory) -> str:
    """Whether it fits, and what to change."""
    plan = build_plan(report.config)
    count = _processes(report.config, plan, report.device)
    peak = count * memory.peak
    needed = f"The run needs {_size(peak)}" + (f" in {count} processes" if count > 1 else "")
    if report.capacity is None:
        return f"{needed}. Say what the device has (--memory 80GB) to learn whether it fits."
    if peak <= report.capacity:
        return f"{needed} of {_size(report.capacity)}: it fits."
    head = f"{needed} and the device has {_size(report.capacity)}: it does not fit."
    fitting = [change for change in report.changes if change.peak <= report.capacity]
    if fitting:
        return f"{head} Any one of these is enough: {_listed(fitting, peak)}."
    if report.combined and report.combined[-1].peak <= report.capacity:
        words = " and ".join(change.setting for change in report.combined)
        left = _size(report.combined[-1].peak)
        return f"{head} No single change is enough; together: {words} ({left})."
    if not report.changes:
        return f"{head} No setting saves memory: use a smaller model or a larger device."
    return (
        f"{head} No change is enough, nor all of them. Each saves: "
        f"{_listed(report.changes, peak)}. Use a smaller model, or a larger device."
    )


def _listed(changes: list[Change] | tuple[Change, ...], peak: int) -> str:
    return "; ".join(
        f"{change.setting} ({_size(change.peak)}, saves {_size(peak - change.peak)})"
        for change in changes
    )


def _unknown(config: Config, why: str) -> str:
    """What can be said without shapes."""
    moments = 2 if config.optimizer.type == "adamw_8bit" else 8
    num = len(build_plan(config).branches)
    if config.model.branches == "lora":
        known = "one copy of the weights takes 4 GB per billion, adapters a few percent on top"
    else:
        held = num * (4 + moments) + 4
        known = (
            f"the weights, moments and one gradient of {num} branches take {held} GB per billion "
            "weights"
        )
    return f"Memory: {why} Without activations and cache, {known}."


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False)


def _size(num_bytes: int) -> str:
    """In GB of 10^9 bytes, smaller ones in MB."""
    return f"{num_bytes / 1e9:,.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:,.1f} MB"

"""The memory of a run by phase, from a configuration and a model's shapes. Loads nothing.

held      weights of all policies, moments of all trained branches, pictures of remembered prompts,
          in bfloat16 on a CPU compiled products
sampling  held + graphs of prompts + keys and values of completions + drawing
scoring   held + graphs of prompts + one micro-batch without gradient
export    held + matrices with an adapter's change in them
update    held + graphs of prompts + one micro-batch with gradient + gradients
merge     held + a further policy + copies of all weights + their merge
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from copd.config import (
    Config,
    RayEngineConfig,
    SampledDistill,
)
from copd.config.sections import LoraConfig
from copd.planning.passes import KERNELS, Passes
from copd.planning.phases import (
    evaluation_bytes,
    is_frozen,
    is_shared,
    prompts_bytes,
    sampling_bytes,
    scoring_bytes,
    teacher_output_bytes,
    update_bytes,
)
from copd.planning.shapes import Shapes
from copd.planning.workload import Lengths, Workload, find_workload
from copd.recipes import Plan

_BOOK_BYTES = 2**28
_BOOK_PROMPTS = 2048
"""How much of prompts a run remembers."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: of all branches with the local engine, else of one."""

    is_shared: bool
    """Branches are adapters on one base."""
    num_policies: int
    num_trained: int
    num_kept: int
    """Copies of what is trained, by which stale teachers answer."""
    weights: int
    """Of all policies and copies."""
    optimizer: int
    """Moments of all trained branches."""
    gradients: int
    """Of the branch that is updated."""
    prompts: int
    """Graphs of prompts that are kept from sampling to update."""
    cache: int
    """Keys and values of prompts and completions of one branch while it samples."""
    activations: int
    """What one micro-batch keeps for its gradient."""
    logits: int
    """The largest moment over the vocabulary, in the update."""
    pictures: int
    """Remembered prompts."""
    kernels: int
    """Compiled products."""
    phases: Mapping[str, int]
    """The largest moment of each."""

    @property
    def peak(self) -> int:
        """The largest moment of all."""
        return max(self.phases.values())


def estimate_memory(
    config: Config, plan: Plan, shapes: Shapes, lengths: Lengths, *, device: str
) -> Memory:
    """The memory on a device, "cpu" or "cuda"."""
    load = find_workload(config, plan, lengths)
    parts = _parts(config, plan, shapes)
    passes = Passes(
        shapes,
        config.model.dtype == "bfloat16",
        parts.adapter_widths,
        config.model.gradient_checkpointing,
        parts.narrow,
    )
    weights, optimizer = parts.weights, parts.optimizer
    pictures = _pictures(config, plan, shapes, lengths)
    kernels = KERNELS if passes.is_half and device == "cpu" else 0
    held = weights + optimizer + pictures + kernels
    graphs = _graphs(config, plan, passes, load)
    cache, sampling = sampling_bytes(config, passes, load, device)
    activations, update, over_vocabulary = update_bytes(config, passes, load, parts.trainable)
    told = teacher_output_bytes(config, load, shapes)
    phases = {
        "sampling": held + graphs + sampling,
        "update": held + graphs + told + update,
        "evaluation": held + evaluation_bytes(config, passes, load, device),
    }
    if parts.narrow:  # from a file in float32
        phases["loading"] = 4 * shapes.parameters + weights
    if is_shared(config):
        phases["export"] = held + _export(config, shapes)
    if load.num_taught:
        phases["scoring"] = held + graphs + told + scoring_bytes(passes, load)
    if device == "cuda":  # there torch updates all parameters at once
        phases["optimizer"] = held + graphs + 8 * parts.trainable
    if plan.merge:
        phases["merge"] = held + _merge(config, plan, parts, device)
    return Memory(
        is_shared=is_shared(config),
        num_policies=parts.num_policies,
        num_trained=parts.num_trained,
        num_kept=parts.num_kept,
        weights=weights,
        optimizer=optimizer,
        gradients=4 * parts.trainable,
        prompts=graphs,
        cache=cache,
        activations=activations,
        logits=over_vocabulary,
        pictures=pictures,
        kernels=kernels,
        phases=phases,
    )


@dataclass(frozen=True)
class _Parts:
    """What stays in memory, in numbers of weights."""

    model: int
    trainable: int
    """Of a branch."""
    adapter: int
    adapter_widths: int | None
    narrow: int
    """Of the model's, kept in bfloat16."""
    num_policies: int
    num_trained: int
    num_kept: int
    moment_bytes: int
    """Of AdamW, for each weight that is trained."""

    @property
    def weights(self) -> int:
        """Bytes: what is trained is float32."""
        kept = 4 * self.num_kept * self.trainable
        if self.adapter_widths is None:
            return kept + 4 * self.num_policies * self.model
        return kept + 4 * (self.model + self.num_trained * self.adapter) - 2 * self.narrow

    @property
    def optimizer(self) -> int:
        """Bytes."""
        return self.moment_bytes * self.trainable * self.num_trained


def _parts(config: Config, plan: Plan, shapes: Shapes) -> _Parts:
    widths, adapter = lora_sizes(shapes, config.model.lora) if is_shared(config) else (None, 0)
    tower = shapes.tower.parameters if shapes.tower and is_frozen(config) else 0
    trained = {name for stage in plan.stages for name in stage.trained}
    keeping = {name for stage in plan.stages if stage.max_staleness for name in stage.trained}
    alone = _is_alone(config)
    return _Parts(
        model=shapes.parameters,
        trainable=adapter if is_shared(config) else shapes.parameters - tower,
        adapter=adapter,
        adapter_widths=widths,
        narrow=_narrow(config, shapes),
        num_policies=1 if alone else len(plan.branches) + _asks_reference(config),
        num_trained=1 if alone else len(trained),
        num_kept=1 if alone and keeping else len(keeping),
        moment_bytes=8 if config.optimizer.type == "adamw" else 2,
    )


def _graphs(config: Config, plan: Plan, passes: Passes, load: Workload) -> int:
    """Of the prompts of all branches that a step trains, where they are kept at all."""
    if is_shared(config) or not load.is_one_loop:
        return 0
    num_trained = max(len(stage.trained) for stage in plan.stages)
    return (1 if _is_alone(config) else num_trained) * prompts_bytes(config, passes, load)


def _is_alone(config: Config) -> bool:
    """A branch has a process of its own."""
    return isinstance(config.engine, RayEngineConfig)


def lora_sizes(shapes: Shapes, lora: LoraConfig) -> tuple[int, int]:
    """The ranks of a text layer's adapters added up, and the numbers in an adapter:
    `rank (in + out)` of every linear layer that has one."""
    chosen = _adapted(shapes, lora)
    numbers = lora.rank * sum(out + into for out, into in chosen)
    return lora.rank * len(chosen) // shapes.layers, numbers


def _adapted(shapes: Shapes, lora: LoraConfig) -> list[tuple[int, int]]:
    """The linear layers that have adapters."""
    targets = lora.target_modules
    return [
        size
        for name, size in shapes.linears.items()
        if targets == "all-linear" or name.split(".")[-1] in targets or name.endswith(targets)
    ]


def _narrow(config: Config, shapes: Shapes) -> int:
    """Frozen weights under adapters take the type of the passes."""
    if not is_shared(config) or config.model.dtype != "bfloat16":
        return 0
    return sum(out * into for out, into in _adapted(shapes, config.model.lora))


def _asks_reference(config: Config) -> bool:
    """Whether theta_0 stays in memory as a policy of its own."""
    distill = config.distill
    extrapolates = isinstance(distill, SampledDistill) and distill.extrapolation != 1.0
    return extrapolates or config.monitor.every > 0


def _pictures(config: Config, plan: Plan, shapes: Shapes, lengths: Lengths) -> int:
    """Pixels and features of the prompts that are remembered, at most 256 MiB of them."""
    tower = shapes.tower
    if tower is None or not lengths.visual:
        return 0
    features = 4 * tower.num_features * shapes.hidden if is_frozen(config) else 0
    each = lengths.visual * (4 * tower.patches_per_token * tower.values_per_patch + features)
    steps = sum(stage.steps * len(stage.actions) for stage in plan.stages)
    seen = steps * config.rollout.num_prompts + len(config.domains) * config.evaluation.num_problems
    return min(_BOOK_BYTES, min(_BOOK_PROMPTS, seen) * each)


def _export(config: Config, shapes: Shapes) -> int:
    """Matrices with an adapter's change in them, in float32, and one such change."""
    sizes = [4 * out * into for out, into in _adapted(shapes, config.model.lora)]
    return sum(sizes) + max(sizes)


def _merge(config: Config, plan: Plan, parts: _Parts, device: str) -> int:
    """A further policy, and on a CPU copies of all weights, of the base's too, and their merge."""
    assert plan.merge is not None, "asked only then"
    num_merged = len(plan.merge.branches)
    own = 4 * (parts.adapter if is_shared(config) else parts.model)
    further = num_merged * own if is_shared(config) else own  # merged adapters keep all ranks
    if device == "cuda" or _is_alone(config):
        return further
    return further + (num_merged + 2) * own

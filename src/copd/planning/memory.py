"""The memory of a run by phase, from a configuration and a model's shapes.

held      weights of all policies, moments of all trained branches, pixels of cached prompts,
          in bfloat16 on a CPU compiled products; with several ranks a share of weights and moments,
          and in every phase the whole weights
sampling  held + graphs of prompts + keys and values of completions + drawing
scoring   held + graphs of prompts + one micro-batch without gradient
export    held + matrices with an adapter's change in them
update    held + graphs of prompts + one micro-batch with gradient + gradients
merge     held + a further policy + copies of all weights + their merge
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from copd.config import Config, RayEngineConfig, SampledDistill
from copd.planning.passes import KERNELS, Passes
from copd.planning.phases import Phases, is_frozen, is_shared
from copd.planning.shapes import Shapes
from copd.planning.workload import BranchStep, Workload
from copd.recipes import Plan

ALL = "all branches"
"""The process of the local engine."""

_CACHE_BYTES, _CACHE_PROMPTS = 2**28, 2048
"""Limits of the prompt cache."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: of all branches with the local engine, else of one rank of a branch."""

    is_shared: bool
    """Branches are adapters on one base."""
    num_policies: int
    num_trained: int
    num_snapshots: int
    """Copies of trained weights, by which stale teachers score."""
    weights: int
    """Of all policies and snapshots."""
    optimizer: int
    """Moments of all trained branches."""
    gradients: int
    """Of the branch that is updated."""
    prompts: int
    """Graphs of prompts from sampling to update."""
    cache: int
    """Keys and values of prompts and completions of one branch while it samples."""
    activations: int
    """What one micro-batch keeps for its gradient."""
    logits: int
    """The largest moment over the vocabulary, in the update."""
    pictures: int
    """Pixels and features of cached prompts."""
    kernels: int
    """Compiled products."""
    gathered: int
    """Whole weights in every phase, with several ranks."""
    phases: Mapping[str, int]
    """The peak of each phase."""

    @property
    def peak(self) -> int:
        """The peak of all phases."""
        return max(self.phases.values())


def estimate_memory(
    config: Config, plan: Plan, shapes: Shapes, workloads: Mapping[str, Workload], *, device: str
) -> dict[str, Memory]:
    """Estimate the memory of every process on a device, "cpu" or "cuda".

    Processes are named by their branch; the only one of the local engine is `ALL`.
    """
    is_alone = isinstance(config.engine, RayEngineConfig)
    processes = {name: (name,) for name in plan.branches} if is_alone else {ALL: plan.branches}
    return {
        name: _Process(config, plan, shapes, workloads, device, branches).estimate()
        for name, branches in processes.items()
    }


class _Process:
    """A process, the branches in it, and what it holds."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        shapes: Shapes,
        workloads: Mapping[str, Workload],
        device: str,
        branches: Sequence[str],
    ) -> None:
        self.config, self.plan, self.shapes, self.device = config, plan, shapes, device
        self.workloads, self.branches = workloads, branches
        engine = config.engine
        self.is_alone = isinstance(engine, RayEngineConfig)
        self.num_ranks = engine.ranks_per_branch if isinstance(engine, RayEngineConfig) else 1
        self.trained = {n for stage in plan.stages for n in stage.trained} & {*branches}
        self.stale = {n for s in plan.stages if s.max_staleness for n in s.trained} & {*branches}
        lora, is_half = config.model.lora, config.model.dtype == "bfloat16"
        self.is_shared = is_shared(config)
        adapted = shapes.adapted(lora) if self.is_shared else []
        self.adapted = [math.prod(matrix) for matrix in adapted]
        self.adapter = lora.rank * sum(map(sum, adapted))
        # frozen weights under adapters take the type of the passes
        self.narrow = sum(self.adapted) if is_half else 0
        frozen = shapes.tower_parameters if is_frozen(config) else 0
        self.trainable = self.adapter if self.is_shared else shapes.parameters - frozen
        widths = lora.rank * len(adapted) // shapes.layers if self.is_shared else None
        is_checkpointed = config.model.gradient_checkpointing
        self.passes = Passes(shapes, is_half, widths, is_checkpointed, self.narrow)

    def estimate(self) -> Memory:
        """Estimate the memory of all phases."""
        weights = self._weights() // self.num_ranks
        moments = 8 if self.config.optimizer.type == "adamw" else 2
        optimizer = moments * self.trainable * len(self.trained) // self.num_ranks
        kernels = KERNELS if self.passes.is_half and self.device == "cpu" else 0
        gathered = 4 * self.shapes.parameters if self.num_ranks > 1 else 0
        pictures = self._pictures()
        held = weights + optimizer + pictures + kernels + gathered
        largest, peaks = self._steps()
        if gathered:
            peaks["gathering"] = gathered
        if self.is_shared:
            peaks["export"] = 4 * (sum(self.adapted) + max(self.adapted, default=0))
        if self.plan.merge:
            peaks["merge"] = self._merge(len(self.plan.merge.branches))
        if self.device == "cuda" and self.trained:  # there torch updates all parameters at once
            peaks["optimizer"] = largest["prompts"] + 8 * self.trainable // self.num_ranks
        if self.narrow:  # from a file in float32
            peaks["loading"] = 4 * self.shapes.parameters + weights - held
        return Memory(
            is_shared=self.is_shared,
            num_policies=self._num_policies(),
            num_trained=len(self.trained),
            num_snapshots=len(self.stale),
            weights=weights,
            optimizer=optimizer,
            gradients=4 * self.trainable if self.trained else 0,
            prompts=largest["prompts"],
            cache=largest["cache"],
            activations=largest["activations"],
            logits=largest["logits"],
            pictures=pictures,
            kernels=kernels,
            gathered=gathered,
            phases={name: held + size for name, size in peaks.items()},
        )

    def _steps(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the largest sizes of all steps, and the phases beside what the process holds."""
        phases = Phases(self.config, self.passes, self.device)
        largest: dict[str, int] = defaultdict(int)
        evaluation = phases.evaluation([*self.workloads.values()], self.num_ranks)
        peaks: dict[str, int] = defaultdict(int, evaluation=evaluation)
        for stage in dict.fromkeys(self.plan.stages):
            names, loads = self.branches, self.workloads
            steps = [BranchStep.find(stage, name, loads, self.num_ranks) for name in names]
            graphs = sum(map(phases.prompts, steps))
            outputs = max(map(phases.teacher_outputs, steps))
            for sizes in (phases.step(step, self.trainable) for step in steps):
                for name, size in {**sizes, "prompts": graphs}.items():
                    largest[name] = max(largest[name], size)
                for phase in ("sampling", "update", "scoring"):
                    beside = graphs + (0 if phase == "sampling" else outputs)
                    if phase in sizes:
                        peaks[phase] = max(peaks[phase], beside + sizes[phase])
        return largest, peaks

    def _num_policies(self) -> int:
        """Count the branches, and theta_0 if extrapolation or the monitor needs it."""
        distill = self.config.distill
        extrapolates = isinstance(distill, SampledDistill) and distill.extrapolation != 1.0
        needs_base = extrapolates or self.config.monitor.every > 0
        return len(self.branches) + (needs_base and not self.is_alone)

    def _weights(self) -> int:
        """Return the weights of all policies and snapshots; trained ones are float32."""
        snapshots = 4 * len(self.stale) * self.trainable
        if not self.is_shared:
            return snapshots + 4 * self._num_policies() * self.shapes.parameters
        adapters = len(self.trained) * self.adapter
        return snapshots + 4 * (self.shapes.parameters + adapters) - 2 * self.narrow

    def _pictures(self) -> int:
        """Return pixels and features of the prompts that are cached."""
        tower, config, loads = self.shapes.tower, self.config, self.workloads.values()
        visual = sum(load.visual_tokens for load in loads) // len(loads)
        if tower is None or not visual:
            return 0
        features = 4 * tower.num_features * self.shapes.hidden if is_frozen(config) else 0
        each = visual * (4 * tower.patches_per_token * tower.values_per_patch + features)
        batches = sum(stage.steps * len(stage.actions) for stage in self.plan.stages)
        seen = batches * config.rollout.num_prompts
        seen += len(config.domains) * config.evaluation.num_problems
        return min(_CACHE_BYTES, min(_CACHE_PROMPTS, seen) * each)

    def _merge(self, num_merged: int) -> int:
        """Return a further policy, and on a CPU copies of all weights and their merge."""
        own = 4 * (self.adapter if self.is_shared else self.shapes.parameters)
        further = num_merged * own if self.is_shared else own  # merged adapters keep all ranks
        if self.device == "cuda" or self.is_alone:
            return further
        return further + (num_merged + 2) * own  # the base's too

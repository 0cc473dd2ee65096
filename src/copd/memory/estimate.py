"""The memory of a run by phase, from a configuration and a model's shapes. Loads nothing.

held      weights of all policies, moments of all trained branches, pictures of remembered prompts
sampling  held + graphs of prompts + keys and values of completions + drawing
scoring   held + graphs of prompts + one micro-batch without gradient
update    held + graphs of prompts + one micro-batch with gradient + gradients
merge     held + a further policy + copies of all weights + their merge
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from copd.config import (
    Config,
    FullDistill,
    RayEngineConfig,
    SampledDistill,
    TopKDistill,
)
from copd.config.sections import LoraConfig
from copd.memory.load import MAX_ROWS, PIECE, Lengths, Load, find_load
from copd.memory.passes import Passes, drawn, logits, tower_patch
from copd.memory.shapes import Shapes
from copd.recipes import Plan

_BOOK_BYTES = 2**28
_BOOK_PROMPTS = 2048
"""How much of prompts a run remembers."""

_WRITTEN_OUT = 2**24
"""Text models up to this size are copied for decoding in float32 on a CPU."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process: of all branches with the local engine, else of one."""

    is_shared: bool
    """Branches are adapters on one base."""
    num_policies: int
    num_trained: int
    weights: int
    """Of all policies."""
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
    phases: Mapping[str, int]
    """The largest moment of each."""

    @property
    def peak(self) -> int:
        """The largest moment of all."""
        return max(self.phases.values())


def estimate(
    config: Config, plan: Plan, shapes: Shapes, lengths: Lengths, *, device: str
) -> Memory:
    """The memory on a device, "cpu" or "cuda"."""
    is_lora = config.model.branches == "lora"
    load = find_load(config, plan, lengths)
    widths, adapter = lora_sizes(shapes, config.model.lora) if is_lora else (None, 0)
    passes = Passes(
        shapes,
        config.model.dtype == "bfloat16",
        widths,
        config.model.gradient_checkpointing,
    )
    frozen_tower = shapes.tower.parameters if shapes.tower and _is_frozen(config) else 0
    trainable = adapter if is_lora else shapes.parameters - frozen_tower
    alone = isinstance(config.engine, RayEngineConfig)
    trained = {name for stage in plan.stages for name in stage.trained}
    num_policies = 1 if alone else len(plan.branches) + _asks_reference(config)
    num_trained = 1 if alone else len(trained)
    weights = (
        4 * (shapes.parameters + num_trained * adapter)
        if is_lora
        else 4 * num_policies * shapes.parameters
    )
    per_moment = 8 if config.optimizer.type == "adamw" else 2
    optimizer = per_moment * trainable * num_trained
    pictures = _pictures(config, plan, shapes, lengths)
    held = weights + optimizer + pictures
    in_step = 1 if alone else max(len(stage.trained) for stage in plan.stages)
    graphs = 0 if is_lora or not load.is_one_loop else in_step * _prompts(config, passes, load)
    cache, sampling = _sampling(config, passes, load, device)
    activations, update, over_vocabulary = _update(config, passes, load, trainable)
    evaluated = _evaluation(config, passes, load, device)
    phases = {
        "sampling": held + graphs + sampling,
        "update": held + graphs + _told(config, load, shapes) + update,
        "evaluation": held + evaluated,
    }
    if load.num_taught:
        told = _told(config, load, shapes)
        phases["scoring"] = held + graphs + told + _scoring(passes, load)
    if device == "cuda":  # there torch updates all parameters at once
        phases["optimizer"] = held + graphs + 8 * trainable
    if plan.merge:
        phases["merge"] = held + _merge(plan, shapes, adapter, device, is_lora=is_lora, alone=alone)
    return Memory(
        is_shared=is_lora,
        num_policies=num_policies,
        num_trained=num_trained,
        weights=weights,
        optimizer=optimizer,
        gradients=4 * trainable,
        prompts=graphs,
        cache=cache,
        activations=activations,
        logits=over_vocabulary,
        pictures=pictures,
        phases=phases,
    )


def lora_sizes(shapes: Shapes, lora: LoraConfig) -> tuple[int, int]:
    """The ranks of a text layer's adapters added up, and the numbers in an adapter:
    `rank (in + out)` of every linear layer that has one."""
    targets = lora.target_modules
    chosen = {
        name: size
        for name, size in shapes.linears.items()
        if targets == "all-linear" or name.split(".")[-1] in targets or name.endswith(targets)
    }
    numbers = lora.rank * sum(out + into for out, into in chosen.values())
    return lora.rank * len(chosen) // shapes.layers, numbers


def _is_frozen(config: Config) -> bool:
    return config.model.frozen_vision or config.model.branches == "lora"


def _asks_reference(config: Config) -> bool:
    """Whether theta_0 stays in memory as a policy of its own."""
    distill = config.distill
    extrapolates = isinstance(distill, SampledDistill) and distill.extrapolation != 1.0
    return extrapolates or config.monitor.every > 0


def _cells(prompts: int, lengths: Lengths) -> int:
    """Of the rectangle that prompts are padded to."""
    return prompts * max(lengths.prompt, lengths.longest)


def _prompts(config: Config, passes: Passes, load: Load) -> int:
    """The graph of a branch's prompts, with that of the tower where it is trained."""
    tokens = load.step_prompts * load.lengths.prompt
    text = passes.prompts(tokens, _cells(load.step_prompts, load.lengths))
    return text + _tower(config, passes, load.step_prompts * load.lengths.visual)


def _tower(config: Config, passes: Passes, num_visual: int) -> int:
    """What a trained tower keeps for its gradient."""
    tower = passes.shapes.tower
    if tower is None or _is_frozen(config):
        return 0
    patches = num_visual * tower.patches_per_token
    layer = 4 * tower.hidden if passes.is_checkpointed else tower_patch(tower)
    return patches * (layer * tower.depth + 4 * tower.values_per_patch)


def _sampling(config: Config, passes: Passes, load: Load, device: str) -> tuple[int, int]:
    """Keys and values, and all that one decode loop holds beside the graph of its prompts."""
    rows = load.loop_prompts * load.group_size
    own = _decoding(config, passes, rows, load.lengths.completion, device)
    keys = passes.prompt_keys(_cells(load.loop_prompts, load.lengths))
    joined = keys if load.num_batches > 1 or not load.is_one_loop else 0
    reading = (
        0 if load.is_one_loop else passes.working_layer(load.loop_prompts * load.lengths.prompt)
    )
    drawing = drawn(rows, passes.shapes.vocabulary, is_tempered=config.rollout.temperature != 1.0)
    return keys + own[0], joined + max(own[0] + own[1] + drawing, reading)


def _decoding(
    config: Config, passes: Passes, rows: int, length: int, device: str
) -> tuple[int, int]:
    """Keys and values of rows that grow to a length, with their room; and copies of weights."""
    room = 256 if device == "cuda" else 32
    while room < length - 1:
        room *= 2
    cache = rows * room * passes.cache * passes.shapes.layers
    s = passes.shapes
    tower = s.tower.parameters if s.tower else 0
    head = 0 if s.is_tied else s.vocabulary * s.hidden
    is_small = s.parameters - tower - head <= _WRITTEN_OUT
    if device == "cpu" and is_small and passes.adapter_widths is None and not passes.is_half:
        joined = s.hidden * (s.query + 2 * s.key + 2 * s.intermediate)
        return cache, 4 * joined * s.layers
    half = 2 * (s.layer_parameters + s.vocabulary * s.hidden) if passes.is_half else 0
    return cache, half


def _update(config: Config, passes: Passes, load: Load, trainable: int) -> tuple[int, int, int]:
    """What a micro-batch keeps, the largest moment of an update, and that over the vocabulary."""
    s, lengths, prompts = passes.shapes, load.lengths, load.part_prompts
    rows = prompts * load.group_size
    tokens = rows * lengths.completion
    cells = _cells(prompts, lengths)
    kept = passes.completions(tokens - rows, tokens) + passes.prompt_copies(cells)
    if passes.adapter_widths is not None or not load.is_one_loop:
        kept += passes.prompts(prompts * lengths.prompt, cells)
        kept += _tower(config, passes, prompts * lengths.visual)
    head = 0 if passes.adapter_widths is not None else 4 * s.vocabulary * s.hidden
    over_vocabulary = logits(tokens, s.vocabulary) + head
    moment = max(over_vocabulary, passes.backward_layer(tokens - rows) + head)
    gradients = 4 * trainable * (load.num_batches if config.monitor.gradient_cosine else 1)
    if load.has_several_parts:
        return kept, kept + moment + gradients, over_vocabulary
    return kept, max(kept + moment, gradients + 8 * s.largest), over_vocabulary


def _scoring(passes: Passes, load: Load) -> int:
    """A micro-batch of a teacher: keys of its prompts, states and logits of completions."""
    tokens = load.scored_prompts * load.group_size * load.lengths.completion
    keys = passes.prompt_keys(_cells(load.scored_prompts, load.lengths))
    states = 2 * 4 * passes.shapes.hidden * tokens
    working = max(logits(tokens, passes.shapes.vocabulary), passes.working_layer(tokens))
    return keys + states + working


def _told(config: Config, load: Load, shapes: Shapes) -> int:
    """What teachers say of a step's tokens, 8 bytes for each of the top tokens they tell."""
    distill = config.distill
    if isinstance(distill, SampledDistill) and not distill.control_variate:
        return 0
    top_k = config.monitor.probe_top_k
    if isinstance(distill, TopKDistill):
        top_k = max(distill.top_k, config.monitor.overlap_k)
    if isinstance(distill, FullDistill):
        top_k = shapes.vocabulary
    tokens = load.num_taught * load.num_prompts * load.group_size * load.lengths.completion
    return 8 * tokens * min(top_k, shapes.vocabulary)


def _evaluation(config: Config, passes: Passes, load: Load, device: str) -> int:
    """One decode loop over held-out problems."""
    settings, lengths = config.evaluation, load.lengths
    prompts = min(
        settings.num_problems,
        PIECE,
        max(1, MAX_ROWS // settings.num_samples),
        max(1, load.micro_batch_tokens // lengths.prompt),
    )
    rows = prompts * settings.num_samples
    length = min(lengths.completion, settings.max_completion_tokens or lengths.completion)
    own = _decoding(config, passes, rows, length, device)
    keys = passes.prompt_keys(_cells(prompts, lengths))
    drawing = drawn(rows, passes.shapes.vocabulary, is_tempered=settings.temperature not in (0, 1))
    return keys + max(sum(own) + drawing, passes.working_layer(prompts * lengths.prompt))


def _pictures(config: Config, plan: Plan, shapes: Shapes, lengths: Lengths) -> int:
    """Pixels and features of the prompts that are remembered, at most 256 MiB of them."""
    tower = shapes.tower
    if tower is None or not lengths.visual:
        return 0
    features = 4 * tower.num_features * shapes.hidden if _is_frozen(config) else 0
    each = lengths.visual * (4 * tower.patches_per_token * tower.values_per_patch + features)
    steps = sum(stage.steps * len(stage.actions) for stage in plan.stages)
    seen = steps * config.rollout.num_prompts + len(config.domains) * config.evaluation.num_problems
    return min(_BOOK_BYTES, min(_BOOK_PROMPTS, seen) * each)


def _merge(
    plan: Plan, shapes: Shapes, adapter: int, device: str, *, is_lora: bool, alone: bool
) -> int:
    """A further policy, and on a CPU copies of all weights, of the base's too, and their merge."""
    merged = len(plan.merge.branches) if plan.merge else 0
    own = 4 * (adapter if is_lora else shapes.parameters)
    further = merged * own if is_lora else own  # a merge of adapters has all their ranks
    if device == "cuda" or alone:
        return further
    return further + (merged + 2) * own

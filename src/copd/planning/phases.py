"""What each phase of a run holds for a moment, in bytes. Knows no weights that stay."""

from __future__ import annotations

from copd.config import Config, FullDistill, SampledDistill, TopKDistill
from copd.planning.passes import Passes, drawn, logits, tower_patch
from copd.planning.shapes import Shapes
from copd.planning.workload import EVALUATION_CHUNK, Lengths, Workload

_WRITTEN_OUT = 2**24
"""Text models up to this size are copied for decoding in float32 on a CPU."""


def is_frozen(config: Config) -> bool:
    return config.model.frozen_vision or is_shared(config)


def is_shared(config: Config) -> bool:
    return config.model.branches == "lora"


def _cells(prompts: int, lengths: Lengths) -> int:
    """Of the rectangle that prompts are padded to."""
    return prompts * max(lengths.prompt, lengths.longest)


def prompts_bytes(config: Config, passes: Passes, load: Workload) -> int:
    """The graph of a branch's prompts, with that of the tower where it is trained."""
    tokens = load.step_prompts * load.lengths.prompt
    text = passes.prompts(tokens, _cells(load.step_prompts, load.lengths))
    return text + _tower(config, passes, load.step_prompts * load.lengths.visual)


def _tower(config: Config, passes: Passes, num_visual: int) -> int:
    """What a trained tower keeps for its gradient."""
    tower = passes.shapes.tower
    if tower is None or is_frozen(config):
        return 0
    patches = num_visual * tower.patches_per_token
    layer = 4 * tower.hidden if passes.is_checkpointed else tower_patch(tower)
    return patches * (layer * tower.depth + 4 * tower.values_per_patch)


def sampling_bytes(config: Config, passes: Passes, load: Workload, device: str) -> tuple[int, int]:
    """Keys and values, and all that one decode loop holds beside the graph of its prompts."""
    rows = load.loop_prompts * load.group_size
    keys = passes.prompt_keys(_cells(load.loop_prompts, load.lengths))
    own = _decoding(config, passes, rows, load.lengths.completion, device, keys=keys)
    has_graph = load.is_one_loop and not is_shared(config)
    several = keys if load.num_batches > 1 else 0  # joined in a copy
    read = several if has_graph else several + keys
    reading = 0 if has_graph else passes.working_layer(load.loop_prompts * load.lengths.prompt)
    drawing = drawn(rows, passes.shapes.vocabulary, device=device)
    return keys + own[0], read + max(own[0] + own[1] + drawing, reading)


def _decoding(
    config: Config, passes: Passes, rows: int, length: int, device: str, *, keys: int
) -> tuple[int, int]:
    """Keys and values of rows that grow to a length, with their room; and copies of weights and of
    what prompts gave."""
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
        return cache, 4 * joined * s.layers + keys
    if not passes.is_half:
        return cache, 0
    kept = (
        s.layer_parameters if passes.adapter_widths is None else 0
    )  # autocast forgets frozen ones
    return cache, 2 * (kept + s.vocabulary * s.hidden)


def update_bytes(
    config: Config, passes: Passes, load: Workload, trainable: int
) -> tuple[int, int, int]:
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


def scoring_bytes(passes: Passes, load: Workload) -> int:
    """A micro-batch of a teacher: keys of its prompts, states and logits of completions."""
    tokens = load.scored_prompts * load.group_size * load.lengths.completion
    keys = passes.prompt_keys(_cells(load.scored_prompts, load.lengths))
    states = 2 * 4 * passes.shapes.hidden * tokens
    working = max(logits(tokens, passes.shapes.vocabulary), passes.working_layer(tokens))
    return keys + states + working


def teacher_output_bytes(config: Config, load: Workload, shapes: Shapes) -> int:
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


def evaluation_bytes(config: Config, passes: Passes, load: Workload, device: str) -> int:
    """One decode loop over held-out problems."""
    settings, lengths = config.evaluation, load.lengths
    prompts = min(
        settings.num_problems,
        EVALUATION_CHUNK,
        max(1, load.max_rows // settings.num_samples),
        max(1, load.micro_batch_tokens // lengths.prompt),
    )
    rows = prompts * settings.num_samples
    length = min(lengths.completion, settings.max_completion_tokens or lengths.completion)
    keys = passes.prompt_keys(_cells(prompts, lengths))
    own = _decoding(config, passes, rows, length, device, keys=keys)
    drawing = drawn(rows, passes.shapes.vocabulary, device=device)
    return keys + max(sum(own) + drawing, passes.working_layer(prompts * lengths.prompt))

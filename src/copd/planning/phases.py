"""Bytes that each phase of a step needs on top of the weights that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from copd.config import Config, FullDistill, SampledDistill, TopKDistill
from copd.planning.passes import Passes, drawn, logits, tower_patch
from copd.planning.workload import BranchStep, Workload, decode_loops

_EVALUATION_CHUNK = 512
"""Problems of an evaluation that are decoded together, at most."""


def is_shared(config: Config) -> bool:
    """Return whether branches are adapters on one base."""
    return config.model.branches == "lora"


def is_frozen(config: Config) -> bool:
    """Return whether the vision tower stays as it is."""
    return config.model.frozen_vision or is_shared(config)


@dataclass(frozen=True)
class Phases:
    """The phases of one branch on a device, "cpu" or "cuda"."""

    config: Config
    passes: Passes
    device: str

    def has_graph(self, step: BranchStep) -> bool:
        """Return whether prompts keep their graph from sampling to update."""
        return not is_shared(self.config) and len(self._loops(step.sampled)) == 1

    def prompts(self, step: BranchStep) -> int:
        """Return the graph of a branch's prompts, with that of the tower where it is trained."""
        if not self.has_graph(step):
            return 0
        tokens = sum(load.num_prompts * load.prompt_tokens for load in step.sampled)
        text = self.passes.prompts(tokens, _cells(step.sampled))
        return text + sum(map(self._tower, step.sampled))

    def step(self, step: BranchStep, trainable: int) -> dict[str, int]:
        """Return the peaks of the phases of a step, beside graphs and teacher outputs.

        "cache", "activations" and "logits" are the largest parts of them.
        """
        sizes: dict[str, int] = {}
        if step.sampled:
            has_graph = self.has_graph(step)
            loops = [self._loop(loop, has_graph=has_graph) for loop in self._loops(step.sampled)]
            sizes["cache"], sizes["sampling"] = max(loops, key=lambda loop: loop[1])
            names = ("activations", "update", "logits")
            sizes |= zip(names, self._update(step, trainable), strict=True)
        if step.scored:
            num_prompts = sum(load.num_prompts for load in step.scored)
            sizes["scoring"] = max(self._score(load.of(num_prompts)) for load in step.scored)
        return sizes

    def evaluation(self, loads: Sequence[Workload], num_ranks: int) -> int:
        """Return one decode loop over held-out problems of the largest domain."""
        settings = self.config.evaluation
        num_problems = -(-min(settings.num_problems, _EVALUATION_CHUNK) // num_ranks)
        held_out = []
        for load in loads:
            limit = settings.max_completion_tokens or load.lengths.mean
            lengths = replace(load.lengths, mean=min(load.lengths.mean, limit))
            changed = replace(load.of(num_problems), lengths=lengths)
            held_out.append(replace(changed, group_size=settings.num_samples))
        loops = [self._loops([load])[0] for load in held_out]
        return max(self._loop(loop, has_graph=False)[1] for loop in loops)

    def _update(self, step: BranchStep, trainable: int) -> tuple[int, int, int]:
        """Return what a micro-batch keeps, an update's peak, and its moment over the vocabulary."""
        config, shapes = self.config, self.passes.shapes
        head = 0 if self.passes.adapter_widths is not None else 4 * shapes.head
        gradients = 4 * trainable * (len(step.sampled) if config.monitor.gradient_cosine else 1)
        found = []
        for load in step.sampled:
            part = load.micro_batch(config.optimizer.micro_batch_tokens)
            tokens, rows = part.num_tokens, part.num_rows
            activations = self._activations(part, has_graph=self.has_graph(step))
            over_vocabulary = logits(tokens, shapes.vocabulary) + head
            moment = max(over_vocabulary, self.passes.backward_layer(tokens - rows) + head)
            if len(step.sampled) > 1 or part.num_prompts < load.num_prompts:
                peak = activations + moment + gradients  # those of an earlier micro-batch
            else:
                peak = max(activations + moment, gradients + 8 * shapes.largest)
            found.append((activations, peak, over_vocabulary))
        return max(found, key=lambda sizes: sizes[1])

    def teacher_outputs(self, step: BranchStep) -> int:
        """Return what teachers send for a step's tokens, 8 bytes for each of their top tokens."""
        distill, vocabulary = self.config.distill, self.passes.shapes.vocabulary
        if isinstance(distill, SampledDistill) and not distill.control_variate:
            return 0
        top_k = self.config.monitor.probe_top_k
        if isinstance(distill, TopKDistill):
            top_k = max(distill.top_k, self.config.monitor.overlap_k)
        if isinstance(distill, FullDistill):
            top_k = vocabulary
        tokens = (sum(load.num_tokens for load in some) for some in (step.scored, step.received))
        return 8 * max(tokens) * min(top_k, vocabulary)

    def _loops(self, loads: Sequence[Workload]) -> list[tuple[Workload, ...]]:
        rows, tokens = self.config.rollout.max_rows, self.config.optimizer.micro_batch_tokens
        return list(decode_loops(loads, max_rows=rows, max_tokens=tokens))

    def _loop(self, loop: Sequence[Workload], *, has_graph: bool) -> tuple[int, int]:
        """Return keys and values of a decode loop, and all that it holds beside a graph."""
        rows = sum(load.num_rows for load in loop)
        cells = sum(load.num_prompts for load in loop) * max(load.padded_prompt for load in loop)
        keys = self.passes.prompt_keys(_cells(loop))
        joined = self.passes.prompt_keys(cells) if len(loop) > 1 else 0
        cache, growing = self._completion_keys(rows, max(load.lengths.mean for load in loop))
        moment = max(growing, drawn(rows, self.passes.shapes.vocabulary, device=self.device))
        decoding = cache + moment + self._cast(cells)
        tokens = sum(load.num_prompts * load.prompt_tokens for load in loop)
        reading = 0 if has_graph else self.passes.working_layer(tokens)
        read = joined if has_graph else joined + keys
        return keys + cache, read + max(decoding, reading)

    def _completion_keys(self, rows: int, length: int) -> tuple[int, int]:
        """Return keys and values of rows of a length, with their room, and what growing adds.

        The room doubles. A GPU holds keys and values as computed, in buffers that it fills in
        place, so the old ones are there until the new ones are filled; a CPU grows layer by layer.
        """
        room = first = 256 if self.device == "cuda" else 32
        while room < length - 1:
            room *= 2
        if self.device == "cpu":
            return self.passes.prompt_keys(rows * room), 0
        cache = self.passes.as_computed(rows * room)
        return cache, cache // 2 if room > first else 0

    def _cast(self, num_cells: int) -> int:
        """Return weights in bfloat16 while decoding, and on a GPU prompt keys."""
        shapes = self.passes.shapes
        if not self.passes.is_half:
            return 0
        # autocast caches no casts of frozen weights
        layers = shapes.layer_parameters if self.passes.adapter_widths is None else 0
        keys = self.passes.as_computed(num_cells) // 2 if self.device == "cuda" else 0
        return 2 * (layers + shapes.head) + keys

    def _activations(self, part: Workload, *, has_graph: bool) -> int:
        """Return what a micro-batch keeps for its gradient."""
        cells, passes = _cells([part]), self.passes
        completions = passes.completions(part.num_tokens - part.num_rows, part.num_tokens)
        size = completions + passes.as_computed(cells)
        if not has_graph:
            size += passes.prompts(part.num_prompts * part.prompt_tokens, cells) + self._tower(part)
        return size

    def _score(self, load: Workload) -> int:
        """Return a teacher's micro-batch: keys of prompts, states and logits of completions."""
        part = load.micro_batch(self.config.optimizer.micro_batch_tokens)
        passes, tokens = self.passes, part.num_tokens
        states = 2 * 4 * passes.shapes.hidden * tokens
        working = max(logits(tokens, passes.shapes.vocabulary), passes.working_layer(tokens))
        return passes.prompt_keys(_cells([part])) + states + working

    def _tower(self, load: Workload) -> int:
        """Return what a trained tower keeps for its gradient."""
        tower = self.passes.shapes.tower
        if tower is None or is_frozen(self.config):
            return 0
        patches = load.num_prompts * load.visual_tokens * tower.patches_per_token
        layer = 4 * tower.hidden if self.passes.is_checkpointed else tower_patch(tower)
        return patches * (layer * tower.depth + 4 * tower.values_per_patch)


def _cells(loads: Sequence[Workload]) -> int:
    """Return the tokens of prompts, each batch padded to its longest."""
    return sum(load.num_prompts * load.padded_prompt for load in loads)

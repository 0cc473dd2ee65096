"""Bytes that passes through a model keep for their gradients and need for a moment.

    D hidden, I intermediate, Q and K the widths of all query and key heads, H query heads,
    V vocabulary, n tokens. c: bytes of a number in a matrix product, 2 under bfloat16 autocast.

The formulas follow the operations of transformers' decoder layers and of copd's packed passes.
"""

from __future__ import annotations

from dataclasses import dataclass

from copd.planning.shapes import Shapes, Tower

CHUNK = 1024
"""Rows of logits at a time in losses and scores."""

KERNELS = 64 * 580_000
"""Bytes of the compiled bfloat16 products that a CPU process caches: their number, and what one
takes on a processor with AVX-512, whatever its shape."""

MOST_SCORES = {"cpu": 2**20, "cuda": 2**30}
"""Rows times vocabulary at a time where tokens are drawn."""


@dataclass(frozen=True)
class Passes:
    """The passes of one model in one precision, of full weights or with adapters."""

    shapes: Shapes
    is_half: bool
    """Under bfloat16 autocast."""
    adapter_widths: int | None = None
    """Ranks of a text layer's adapters, added up; None without adapters."""
    is_checkpointed: bool = False
    num_narrow: int = 0
    """Weights that are stored in bfloat16, so that no pass casts them."""

    @property
    def number(self) -> int:
        """The c of the formulas."""
        return 2 if self.is_half else 4

    @property
    def completion_layer(self) -> int:
        """A text layer's kept bytes per completion token.

        float32: `4 (6 D + 4 I + 2 Q + 2 K + H)`, with head norms also `8 (Q + K)`: each norm its
        input, normalised input and output; attention its inputs, output and log-sum; the
        feed-forward gate, its activation, up and product. Under autocast every product of a norm's
        output keeps a copy of its own. Frozen norms keep no normalised input.
        """
        s = self.shapes
        return self._around_attention + self.number * (2 * s.query + 2 * s.key) + 4 * s.num_heads

    @property
    def prompt_layer(self) -> tuple[int, int]:
        """A text layer's kept bytes per prompt token, and per cell of the padded prompts.

        Attention over padded prompts repeats the key heads for every query head: `c 4 Q`. Keys and
        values stay for completions and sampling.
        """
        s = self.shapes
        cell = 4 * self.number * s.query + self.cache
        return self._around_attention + self.number * s.query, cell

    @property
    def cache(self) -> int:
        """A layer's keys and values per token; rotated keys are float32 in either precision."""
        return (4 + self.number) * self.shapes.key

    @property
    def _around_attention(self) -> int:
        s, c = self.shapes, self.number
        is_frozen = self.adapter_widths is not None
        copies = (3 + 2) * c if self.is_half else 2 * c
        norms = s.hidden * (2 * 4 + copies + (0 if is_frozen else 2 * 4))
        heads = (s.query + s.key) * (4 + (0 if is_frozen else c)) if s.has_head_norms else 0
        return norms + heads + 4 * c * s.intermediate + c * (self.adapter_widths or 0)

    def completions(self, num_run: int, num_tokens: int) -> int:
        """Return what a row of completions keeps for its gradient, `num_run` tokens being run."""
        s, layer = self.shapes, self.completion_layer
        if self.is_checkpointed:
            layer = 4 * s.hidden
        states = 4 * s.hidden * (2 * num_run + (1 if self.is_half else 2) * num_tokens)
        return num_run * layer * s.layers + states + self._cast_weights

    def prompts(self, num_tokens: int, num_cells: int) -> int:
        """Return what prompts that are read together keep for their gradient."""
        s = self.shapes
        token, cell = self.prompt_layer
        if self.is_checkpointed:
            token, cell = 4 * s.hidden, self.cache
        layer = num_tokens * token + num_cells * cell
        return layer * s.layers + 3 * 4 * s.hidden * num_tokens + self._cast_weights

    def prompt_keys(self, num_cells: int) -> int:
        """Return the keys and values of prompts that are read for sampling or scoring only."""
        return self.cache * self.shapes.layers * num_cells

    def as_computed(self, num_cells: int) -> int:
        """Return keys and values in the type of matrix products, as attention takes them."""
        return 2 * self.number * self.shapes.key * self.shapes.layers * num_cells

    @property
    def _cast_weights(self) -> int:
        """Matrices in bfloat16, kept by the graph."""
        return 2 * (self.shapes.layer_parameters - self.num_narrow) if self.is_half else 0

    def working_layer(self, num_tokens: int) -> int:
        """Return one layer's values for a moment, in a pass without gradient.

        `4 n (3 D + Q + 2 K + 3 I)` in float32.
        """
        s, c = self.shapes, self.number
        return num_tokens * (12 * s.hidden + c * (s.query + 2 * s.key + 3 * s.intermediate))

    def backward_layer(self, num_tokens: int) -> int:
        """Return a layer's gradients for a moment, and what checkpointing computes again."""
        s, c = self.shapes, self.number
        again = self.completion_layer if self.is_checkpointed else 0
        return num_tokens * (again + 8 * s.hidden + 2 * c * s.intermediate)


def logits(num_tokens: int, vocabulary: int) -> int:
    """Return the largest moment of a loss or a score over the vocabulary, in float32.

    There are two copies of a chunk, and from the second chunk on the one before.
    """
    second = min(CHUNK, max(0, num_tokens - CHUNK))
    return 4 * vocabulary * (2 * second + CHUNK if second else 2 * min(num_tokens, CHUNK))


def drawn(num_rows: int, vocabulary: int, *, device: str) -> int:
    """Return the largest moment of drawing a token for some rows at a time.

    Log-probabilities and probabilities are float32, and the sums of these float64.
    """
    at_once = min(num_rows, max(1, MOST_SCORES[device] // vocabulary))
    return at_once * vocabulary * 16


def tower_patch(tower: Tower) -> int:
    """Return a trained tower's kept bytes per patch and layer, float32: `4 (9 D + 2 I)`."""
    return 4 * (9 * tower.hidden + (4 if tower.is_gated else 2) * tower.intermediate)

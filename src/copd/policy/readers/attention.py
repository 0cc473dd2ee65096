"""Attention for rows that hold many sequences, installed in unmodified transformers classes.

Knows no tokens, no positions and no model class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "shared_prefix"
"""The name under which transformers finds `dispatch`."""

_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Keywords by which a model asks for more than plain softmax attention over all earlier tokens."""


RowAttention = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Attention over one row of N tokens; who attends to whom is its own. From the layer's number, the
queries `1 H N d`, keys and values `1 Hk N d` and the scale to `1 N H d`."""


def dispatch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_attention: RowAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function transformers calls: `row_attention` where given, else plain sdpa.

    Without it everything else (`generate`, padded batches) works as before. The keywords are
    transformers' protocol.
    """
    if row_attention is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    wanted = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if wanted:
        raise ValueError(
            f"packed passes need plain attention over all earlier tokens: got {wanted[0]} in "
            f"{type(module).__name__}. Choose a model without it (Qwen3-VL, Qwen3 and Llama work)."
        )
    layer: Any = module.layer_idx
    return row_attention(layer, query, key, value, kwargs["scaling"]), None


def install(model: PreTrainedModel) -> None:
    """Let the text layers of `model` call `dispatch`; a vision tower keeps its own attention."""
    AttentionInterface.register(IMPLEMENTATION, dispatch)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # or padding would be attended to
    nested = model.config.get_text_config() is not model.config
    model.set_attn_implementation({"text_config": IMPLEMENTATION} if nested else IMPLEMENTATION)


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Sequences laid end to end in one row, as a right-padded rectangle, and back.

        row   a a a b c c      rectangle   a a a
                                           b . .
                                           c c .

    Padding cells hold a copy of token 0: finite, and the caller's to mask.
    """

    num_sequences: int
    width: int
    token_of_cell: Int[Tensor, "cells"] | None
    """None when there is no padding: both directions are then views."""
    cell_of_token: Int[Tensor, "N"] | None

    @classmethod
    def build(cls, lengths: Sequence[int], device: torch.device) -> "Rectangle":
        """For sequences of these lengths, zero included."""
        width = max(lengths)
        if min(lengths) == width:
            return cls(len(lengths), width, None, None)
        is_token = torch.arange(width) < torch.tensor(lengths)[:, None]
        cells = is_token.flatten()
        token_of_cell = torch.where(cells, cells.cumsum(0) - 1, 0)
        cell_of_token = cells.nonzero()[:, 0]
        return cls(len(lengths), width, token_of_cell.to(device), cell_of_token.to(device))

    @classmethod
    def of_groups(
        cls, prompt_of_row: Int[Tensor, "R"], num_prompts: int, device: torch.device
    ) -> "Rectangle":
        """A slot for every row: as many for every prompt as the largest group has."""
        counts = prompt_of_row.bincount(minlength=num_prompts).tolist()
        slots = [int(rank < count) for count in counts for rank in range(max(counts))]
        return cls.build(slots, device)

    def slots_in(self, kept: "Rectangle", rows: Int[Tensor, "K"]) -> Int[Tensor, "slots"]:
        """The slot here of what fills each slot of `kept`, which has only these rows."""
        old = rows if self.cell_of_token is None else self.cell_of_token[rows]
        return old if kept.token_of_cell is None else old[kept.token_of_cell]

    def pad(self, row: Float[Tensor, "1 H N d"]) -> Float[Tensor, "R H W d"]:
        """The row as a rectangle."""
        tokens = row[0]
        cells = tokens if self.token_of_cell is None else tokens.index_select(1, self.token_of_cell)
        return cells.unflatten(1, (self.num_sequences, self.width)).transpose(0, 1)

    def unpad(self, rectangle: Float[Tensor, "R H W d"]) -> Float[Tensor, "1 N H d"]:
        """The rectangle as a row, in the axis order transformers expects back."""
        cells = rectangle.transpose(1, 2).flatten(0, 1)
        return (cells if self.cell_of_token is None else cells[self.cell_of_token])[None]

    def pad_groups(
        self, row: Float[Tensor, "1 H N d"], num_prompts: int
    ) -> Float[Tensor, "P H G W d"]:
        """The rectangle prompt by prompt, where each has as many sequences."""
        return self.pad(row).unflatten(0, (num_prompts, -1)).transpose(1, 2)

    def unpad_groups(self, groups: Float[Tensor, "P H G W d"]) -> Float[Tensor, "1 N H d"]:
        """The inverse of `pad_groups`, as a row."""
        return self.unpad(groups.transpose(1, 2).flatten(0, 1))

"""Sequences that lie end to end in one row, as a right-padded rectangle, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rectangle:
    """The places of sequences in a row and in a rectangle.

        row   a a a b c c      rectangle   a a a
                                           b . .
                                           c c .

    Padding cells hold a copy of token 0, which is finite; the caller masks them.
    """

    num_sequences: int
    width: int
    token_of_cell: Int[Tensor, "cells"] | None
    """None where there is no padding: both directions are then views."""
    cell_of_token: Int[Tensor, "N"] | None

    @classmethod
    def build(cls, lengths: Sequence[int], device: torch.device) -> "Rectangle":
        """Build the rectangle of sequences of these lengths, zero included."""
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
        """Build slots for rows of one token: each prompt has as many as the largest group."""
        counts = prompt_of_row.bincount(minlength=num_prompts).tolist()
        slots = [int(rank < count) for count in counts for rank in range(max(counts))]
        return cls.build(slots, device)

    def slots_in(self, other: "Rectangle", rows: Int[Tensor, "K"]) -> Int[Tensor, "slots"]:
        """Return the slot here of what fills each slot of `other`, which has only these rows."""
        old = rows if self.cell_of_token is None else self.cell_of_token[rows]
        return old if other.token_of_cell is None else old[other.token_of_cell]

    def pad(self, row: Float[Tensor, "1 H N d"]) -> Float[Tensor, "R H W d"]:
        """Lay a row out as the rectangle."""
        tokens = row[0]
        cells = tokens if self.token_of_cell is None else tokens.index_select(1, self.token_of_cell)
        return cells.unflatten(1, (self.num_sequences, self.width)).transpose(0, 1)

    def unpad(self, rectangle: Float[Tensor, "R H W d"]) -> Float[Tensor, "1 N H d"]:
        """Lay the rectangle out as a row, with the order of axes that transformers expects."""
        cells = rectangle.transpose(1, 2).flatten(0, 1)
        return (cells if self.cell_of_token is None else cells[self.cell_of_token])[None]

    def pad_groups(
        self, row: Float[Tensor, "1 H N d"], num_prompts: int
    ) -> Float[Tensor, "P H G W d"]:
        """Lay a row out prompt by prompt, where each prompt has equally many sequences."""
        return self.pad(row).unflatten(0, (num_prompts, -1)).transpose(1, 2)

    def unpad_groups(self, groups: Float[Tensor, "P H G W d"]) -> Float[Tensor, "1 N H d"]:
        """Invert `pad_groups`, as `unpad` does."""
        return self.unpad(groups.transpose(1, 2).flatten(0, 1))

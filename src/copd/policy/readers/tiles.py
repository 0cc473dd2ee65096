"""Completions of similar length bundled into tiles, rectangles that are computed one at a time.

completions of two prompts    a a a a a | a | a a a a      b b | b b b b b b | b
by prompt, longest first      a a a a a | a a a a | a      b b b b b b | b b | b
tiles                         a a a a a .   a a a a        a . | b .
                              b b b b b b   b b . .
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

_MAX_SCORES = 2**18
"""Attention scores of a tile, unless one prompt and key head have more: they fit a core's cache."""

_SIMILAR = 0.65
"""A tile ends before completions that are shorter than this share of its longest."""


@dataclass(frozen=True, eq=False)
class Tile:
    """Some key heads of the r-th to s-th longest completions of some prompts: `b k g w` cells."""

    prompts: slice | Int[Tensor, "b"]
    heads: slice
    shape: tuple[int, int, int]
    """b, g and w."""
    tokens: slice | Int[Tensor, "n"]
    """Places of the tile's tokens in the row."""
    token_of_cell: Int[Tensor, "bgw"] | None
    """Padding cells hold token 0. None where `tokens` is a slice, which has no padding."""
    cell_of_token: Int[Tensor, "n"] | None
    padding: Bool[Tensor, "b g w"] | None

    def take(self, row: Float[Tensor, "N Hk h x"]) -> Float[Tensor, "bk g wh x"]:
        """Return the tile's cells, the query heads of a key head next to each other."""
        heads = row[:, self.heads]
        cells = (
            heads[self.tokens]
            if self.token_of_cell is None
            else heads.index_select(0, self.token_of_cell)
        )
        by_head = cells.unflatten(0, self.shape).movedim(3, 1)  # b k g w h x
        return by_head.flatten(3, 4).flatten(0, 1)

    def put(self, cells: Float[Tensor, "bk g wh x"], row: Float[Tensor, "N Hk h x"]) -> None:
        """Write cells to the places in the row that `take` reads."""
        heads = row[:, self.heads]
        num_prompts, _, width = self.shape
        by_head = cells.unflatten(2, (width, -1)).unflatten(0, (num_prompts, -1))
        by_token = by_head.movedim(1, 3)  # b g w k h x
        if isinstance(self.tokens, slice):
            heads[self.tokens].view(by_token.shape).copy_(by_token)
        else:
            flat = by_token.flatten(0, 2)
            if self.cell_of_token is not None:
                flat = flat.index_select(0, self.cell_of_token)
            heads.index_copy_(0, self.tokens, flat.to(heads.dtype))

    def hide(self, log_sums: Float[Tensor, "bk g wh 1"]) -> Float[Tensor, "bk g wh 1"]:
        """Set padding cells to infinity, so that their weights are zero."""
        if self.padding is None:
            return log_sums
        num_prompts, _, width = self.shape
        by_head = log_sums.unflatten(2, (width, -1)).unflatten(0, (num_prompts, -1))
        by_head.masked_fill_(self.padding[:, None, :, :, None, None], torch.inf)
        return log_sums

    def of_prompts(self, each: Float[Tensor, "P Hk L d"]) -> Float[Tensor, "bk L d"]:
        """Select the tile's prompts and heads."""
        heads = each[:, self.heads]
        if isinstance(self.prompts, slice):
            return heads[self.prompts].flatten(0, 1)
        return heads.index_select(0, self.prompts).flatten(0, 1)

    def add_to_prompts(
        self, gradient: Float[Tensor, "bk L d"], each: Float[Tensor, "P Hk L d"]
    ) -> None:
        """Add to the tile's prompts and heads; several tiles may have the same prompts."""
        heads, by_head = each[:, self.heads], gradient.unflatten(0, (self.shape[0], -1))
        if isinstance(self.prompts, slice):
            heads[self.prompts].add_(by_head)
        else:
            heads.index_add_(0, self.prompts, by_head.to(heads.dtype))


def build_tiles(
    lengths: Sequence[Sequence[int]],
    prompt_length: int,
    heads: tuple[int, int],
    device: torch.device,
) -> list[Tile]:
    """Build tiles that cover a row of completions, which lie in it prompt by prompt.

    `lengths[p]` are those of prompt p, zero included; `heads` are the number of key heads and of
    query heads for each. Completions of equal length give runs of prompts, which need no index.
    """
    num_key_heads, num_sharing = heads
    group_size = max(len(group) for group in lengths)
    sizes = np.array([[*group, *[0] * (group_size - len(group))] for group in lengths])  # P G
    starts = (sizes.cumsum() - sizes.ravel()).reshape(sizes.shape)
    ranking = (-sizes).argsort(axis=1, kind="stable")
    sizes, starts = (np.take_along_axis(values, ranking, axis=1) for values in (sizes, starts))
    tiles = []
    for ranks in _similar_runs(sizes.sum(axis=0)):
        longest = sizes[:, ranks.start]
        order = (-longest).argsort(kind="stable")[: np.count_nonzero(longest)]
        scores = longest * (prompt_length + longest) * (ranks.stop - ranks.start) * num_sharing
        for run in _similar_runs(longest[order], scores[order] * num_key_heads):
            prompts = order[run]
            tile = _build_tile(prompts, sizes[prompts, ranks], starts[prompts, ranks], device)
            step = max(1, min(num_key_heads, _MAX_SCORES // int(scores[prompts[0]])))
            for first in range(0, num_key_heads, step):
                tiles.append(replace(tile, heads=slice(first, min(first + step, num_key_heads))))
    return tiles


def _similar_runs(
    lengths: NDArray[np.int64], scores: NDArray[np.int64] | None = None
) -> Iterator[slice]:
    """Split descending lengths into runs, which `scores`, those of each member, may also bound."""
    first = 0
    for here in range(1, len(lengths) + 1):
        ends = here == len(lengths) or lengths[here] < _SIMILAR * lengths[first]
        if ends or (scores is not None and (here + 1 - first) * scores[first] > _MAX_SCORES):
            yield slice(first, here)
            first = here


def _build_tile(
    prompts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    starts: NDArray[np.int64],
    device: torch.device,
) -> Tile:
    """Build the tile, with all heads, of completions with these sizes and starts, `b g`."""
    steps = np.arange(sizes.max())
    is_token = steps < sizes[..., None]  # b g w
    token_of_cell = np.where(is_token, starts[..., None] + steps, 0)
    is_full = bool(is_token.all())
    tokens = _as_slice(token_of_cell.ravel()) if is_full else token_of_cell[is_token]

    def put(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device)

    return Tile(
        run if isinstance(run := _as_slice(prompts), slice) else put(run),
        slice(None),
        is_token.shape,
        tokens if isinstance(tokens, slice) else put(tokens),
        None if isinstance(tokens, slice) else put(token_of_cell.ravel()),
        None if is_full else put(is_token.ravel().nonzero()[0]),
        None if is_full else put(~is_token),
    )


def _as_slice(index: NDArray[np.int64]) -> NDArray[np.int64] | slice:
    """Turn ascending neighbours into a slice, which copies nothing."""
    run = slice(int(index[0]), int(index[0]) + len(index))
    return run if (index == np.arange(run.start, run.stop)).all() else index

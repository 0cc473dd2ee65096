"""Attention of completions over their prompt and themselves by flex attention, for GPUs.

    keys      prompts, right-padded to whole blocks     completions end to end
              a a a a a . . .   b b b b b b b .         x x x y z z z z

The mask follows from an owner per key, and the blocks of the (query, key) grid to compute follow
from the lengths, so nothing of the size of all pairs exists.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad

BLOCK = 128
"""Queries and keys of a block, as the kernels are tuned for."""


def visit_blocks(
    prompt_of: Int[Tensor, "N"],
    completion_of: Int[Tensor, "N"],
    prompt_lengths: Int[Tensor, "P"],
    prompt_blocks: int,
    block: int,
) -> tuple[Bool[Tensor, "Q K"], Bool[Tensor, "Q K"]]:
    """Mark the blocks with both visible and hidden pairs, and the blocks with only visible ones.

    The row of queries goes prompt by prompt and completion by completion. Every prompt has
    `prompt_blocks` blocks of keys, which precede those of the row. A last block that the row does
    not fill is never full, since the kernels need its mask.
    """
    device, num_queries = prompt_of.device, len(prompt_of)
    rows = torch.arange(num_queries, device=device)
    num_blocks = -(-num_queries // block)
    counts = torch.zeros(num_blocks, len(prompt_lengths), dtype=torch.int64, device=device)
    counts.index_put_((rows // block, prompt_of), torch.ones_like(rows), accumulate=True)
    starts = torch.arange(prompt_blocks, device=device) * block
    some = prompt_lengths[:, None] > starts  # P blocks
    whole = prompt_lengths[:, None] >= starts + block
    on_prompt = ((counts > 0)[:, :, None] & some).flatten(1)
    on_prompt_full = ((counts == block)[:, :, None] & whole).flatten(1)

    first = completion_of[::block]  # of each block
    last = completion_of[(rows[:num_blocks] * block + block - 1).clamp(max=num_queries - 1)]
    earlier = torch.ones(num_blocks, num_blocks, dtype=torch.bool, device=device).tril(-1)
    filled = counts.sum(dim=1) == block
    on_own = (earlier & (first[:, None] == last)) | earlier.logical_not().tril()
    on_own_full = earlier & (last[:, None] == first) & filled[:, None]

    visited = torch.cat([on_prompt, on_own], dim=1)
    full = torch.cat([on_prompt_full, on_own_full], dim=1)
    return visited & ~full, full


def block_mask(
    prompt_of: Int[Tensor, "N"],
    completion_of: Int[Tensor, "N"],
    prompt_lengths: Int[Tensor, "P"],
    prompt_blocks: int,
    *,
    block: int = BLOCK,
) -> BlockMask:
    """Build the mask by which a token sees its prompt and, up to itself, its completion."""
    num_queries, num_prompts = len(prompt_of), len(prompt_lengths)
    num_prompt_keys = num_prompts * prompt_blocks * block
    cells = torch.arange(num_prompt_keys, device=prompt_of.device)
    cells = cells.unflatten(0, (num_prompts, prompt_blocks * block))
    is_token = cells - cells[:, :1] < prompt_lengths[:, None]
    owner_of_cell = torch.where(is_token, cells // (prompt_blocks * block), -1).flatten()
    prompt, completion = prompt_of.int(), (num_prompts + completion_of).int()
    owner = torch.cat([owner_of_cell.int(), completion])  # of each key: its prompt or completion
    row = torch.arange(-num_prompt_keys, num_queries, dtype=torch.int32, device=prompt.device)

    partial, full = visit_blocks(prompt_of, completion_of, prompt_lengths, prompt_blocks, block)
    return BlockMask.from_kv_blocks(
        *_visited_first(partial),
        *_visited_first(full),
        BLOCK_SIZE=block,
        mask_mod=lambda batch, head, query, key: (
            (owner[key] == prompt[query])
            | ((owner[key] == completion[query]) & (row[key] <= query))
        ),
        seq_lengths=(num_queries, num_prompt_keys + num_queries),
    )


@dataclass(frozen=True, eq=False)
class FlexAttention:
    """The `RowAttention` of each completion to its prompt and, causally, to itself."""

    keys: Mapping[int, Tensor]
    """Keys of the prompts by layer, `P Hk L d`, right-padded."""
    values: Mapping[int, Tensor]
    mask: BlockMask
    num_padding: int
    """Tokens added to a short row, since torch would compile extra kernels for a single block."""
    attend: Callable[[Tensor, Tensor, Tensor, BlockMask], Tensor]

    @classmethod
    def build(
        cls,
        keys: Mapping[int, Tensor],
        values: Mapping[int, Tensor],
        padding: Bool[Tensor, "P L"] | None,
        prompt_of: Int[Tensor, "N"],
        completion_of: Int[Tensor, "N"],
    ) -> "FlexAttention":
        """Build it for tokens whose prompts and completions are numbered from 0, ascending.

        Added tokens form one more completion of the last prompt.
        """
        num_prompts, _, width, _ = next(iter(keys.values())).shape
        lengths = torch.full((num_prompts,), width, device=prompt_of.device)
        if padding is not None:
            lengths = lengths - padding.sum(dim=1)
        missing = max(0, BLOCK + 1 - len(prompt_of))
        prompt_of = pad(prompt_of, (0, missing), value=num_prompts - 1)
        completion_of = pad(completion_of, (0, missing), value=torch.iinfo(torch.int16).max)
        mask = block_mask(prompt_of, completion_of, lengths, -(-width // BLOCK))
        return cls(keys, values, mask, missing, attend_compiled)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        dtype = value.dtype  # under autocast a norm leaves queries and keys wider than values
        queries, *own = (self._pad(row.to(dtype)) for row in (query * scale, key, value))
        prompt = (self._as_row(each[layer]).to(dtype) for each in (self.keys, self.values))
        keys, values = (torch.cat(rows, dim=2) for rows in zip(prompt, own, strict=True))
        with torch.autocast(query.device.type, enabled=False):  # or it would be compiled for both
            mixed = self.attend(queries, keys, values, self.mask)
        return mixed[:, :, : query.shape[2]].transpose(1, 2)

    def _pad(self, row: Tensor) -> Tensor:
        """Add the missing tokens to a row `1 H N d`, and keep its layout, token by token."""
        if self.num_padding == 0:
            return row
        return pad(row.transpose(1, 2), (0, 0, 0, 0, 0, self.num_padding)).transpose(1, 2)

    def _as_row(self, rectangle: Tensor) -> Tensor:
        """Lay `P Hk L d` out as `1 Hk (P blocks) d`, zeros where no token is."""
        block = self.mask.BLOCK_SIZE[1]
        whole = pad(rectangle, (0, 0, 0, -rectangle.shape[2] % block))
        return whole.transpose(0, 1).flatten(1, 2)[None]


def attend(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """Attend with scaled queries over what the mask shows.

    A scale passed to the kernel would be compiled into it. The kernel for short queries is not
    used, so that one kernel serves all lengths.
    """
    mixed = flex_attention(
        query,
        key,
        value,
        block_mask=mask,
        scale=1.0,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )
    assert isinstance(mixed, Tensor), "no auxiliary outputs are requested"
    return mixed


attend_compiled = torch.compile(attend, dynamic=True, fullgraph=True)
"""Compiled on its first call, once for all lengths, and again for the other gradient mode."""


def _visited_first(
    visited: Bool[Tensor, "Q K"],
) -> tuple[Int[Tensor, "1 1 Q"], Int[Tensor, "1 1 Q K"]]:
    """Return the number of blocks that each row visits, and all blocks, visited ones first."""
    order = visited.int().argsort(dim=1, descending=True, stable=True)
    return visited.sum(dim=1).int()[None, None], order.int()[None, None]

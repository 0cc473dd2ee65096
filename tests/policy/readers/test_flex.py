"""Flex attention: its blocks against all pairs, and its result against that of the CPU."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from copd.policy.readers.flex import FlexAttention, attend, block_mask, visit_blocks
from copd.policy.readers.packed import CompletionAttention
from copd.policy.readers.prefix import SharedPrefix

groups = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=5
).filter(lambda groups: any(lengths for _, lengths in groups))
"""The length of each prompt, and those of its completions."""


def layout(groups: list[tuple[int, list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the prompt and the completion of every token, and the lengths of prompts."""
    lengths = torch.tensor([length for _, group in groups for length in group])
    prompts = torch.tensor([p for p, (_, group) in enumerate(groups) for _ in group])
    completions = torch.arange(len(lengths)).repeat_interleave(lengths)
    return prompts[completions], completions, torch.tensor([length for length, _ in groups])


def see_all_pairs(groups: list[tuple[int, list[int]]], width: int) -> Tensor:
    """Return which keys each query sees, `queries (P width + queries)`, pair by pair."""
    rows = [(p, c, t) for p, (_, g) in enumerate(groups) for c, n in enumerate(g) for t in range(n)]
    prompt_keys = [(p, t < length) for p, (length, _) in enumerate(groups) for t in range(width)]
    return torch.tensor(
        [
            [key_prompt == p and is_token for key_prompt, is_token in prompt_keys]
            + [(p, c) == (key_p, key_c) and key_t <= t for key_p, key_c, key_t in rows]
            for p, c, t in rows
        ]
    )


def in_blocks(pairs: Tensor, block: int) -> Tensor:
    """Count the visible pairs in each block of the grid."""
    rows, columns = (-size % block for size in pairs.shape)
    padded = torch.nn.functional.pad(pairs.int(), (0, columns, 0, rows))
    return padded.unflatten(1, (-1, block)).unflatten(0, (-1, block)).sum(dim=(1, 3))


@settings(deadline=None)
@given(groups, st.integers(2, 8), st.integers(0, 1))
def test_blocks_are_visited_exactly_where_pairs_are_visible(groups, block, spare):
    prompt_of, completion_of, lengths = layout(groups)
    prompt_blocks = -(-int(lengths.max()) // block) + spare
    partial, full = visit_blocks(prompt_of, completion_of, lengths, prompt_blocks, block)
    visible = in_blocks(see_all_pairs(groups, prompt_blocks * block), block)
    assert torch.equal(full, visible == block * block)
    assert torch.equal(partial, (visible > 0) & (visible < block * block))


@settings(deadline=None)
@given(groups, st.integers(1, 4))
def test_the_mask_shows_every_visible_pair_and_no_other(groups, block):
    prompt_of, completion_of, lengths = layout(groups)
    prompt_blocks = -(-int(lengths.max()) // block)
    mask = block_mask(prompt_of, completion_of, lengths, prompt_blocks, block=block)
    pairs = see_all_pairs(groups, prompt_blocks * block)
    assert mask.shape == (1, 1, *pairs.shape)
    query, key = (torch.arange(size) for size in pairs.shape)
    nothing = torch.zeros((), dtype=torch.int64)
    shown = mask.mask_mod(nothing, nothing, query[:, None], key)  # pyright: ignore[reportCallIssue]
    assert torch.equal(shown, pairs)


@pytest.mark.parametrize("block", [4, 16])
def test_the_mask_is_the_one_torch_finds_by_looking_at_all_pairs(block):
    groups = [(9, [3, 40, 1]), (30, []), (16, [16, 16]), (5, [2, 70])]
    prompt_of, completion_of, lengths = layout(groups)
    built = block_mask(prompt_of, completion_of, lengths, -(-30 // block), block=block)
    _, _, queries, keys = built.shape
    found = create_block_mask(built.mask_mod, None, None, queries, keys, "cpu", BLOCK_SIZE=block)
    assert built.BLOCK_SIZE == found.BLOCK_SIZE == (block, block)
    assert built.seq_lengths == found.seq_lengths
    for name in ("kv", "full_kv", "q", "full_q"):
        assert torch.equal(visited(built, name), visited(found, name)), name


def visited(mask: BlockMask, name: str) -> Tensor:
    """Return the blocks that a list of a mask names, as a grid."""
    counts, order = (getattr(mask, f"{name}_{part}")[0, 0] for part in ("num_blocks", "indices"))
    listed = torch.arange(order.shape[1]) < counts[:, None]
    return torch.zeros_like(listed).scatter(1, order.long(), listed)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    """Forget what another test has compiled."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def both_ways(groups: list[tuple[int, list[int]]], compiled, dtype=torch.float64):
    """Compute one layer's attention by flex attention and as on a CPU."""
    prompt_of, completion_of, lengths = layout(groups)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    width, size = int(lengths.max()), len(prompt_of)
    is_padding = torch.arange(width) >= lengths[:, None]
    padding = is_padding if is_padding.any() else None
    keys, values = ({7: draw(len(groups), 2, width, 16)} for _ in range(2))
    query, key, value = (draw(1, size, heads, 16).transpose(1, 2) for heads in (4, 2, 2))
    flex = FlexAttention.build(keys, values, padding, prompt_of, completion_of)
    flex = FlexAttention(flex.keys, flex.values, flex.mask, flex.num_padding, compiled)

    nothing = torch.zeros(len(groups), 1)
    prefix = SharedPrefix(keys, values, padding, nothing, nothing[:, 0].long())
    matmul = CompletionAttention.build(prefix, [group for _, group in groups], 4)
    return tuple(attention(7, query, key, value, 0.3) for attention in (flex, matmul))


RAGGED = [(140, [3, 150, 1]), (30, []), (256, [128, 128, 7]), (5, [2, 301])]
EQUAL = [(20, [5, 5]), (20, [5, 5])]


@pytest.mark.parametrize("groups", [RAGGED, EQUAL, [(3, [1])]], ids=["ragged", "equal", "one"])
def test_flex_attention_equals_matmul_and_softmax(groups):
    captured = torch.compile(attend, backend="eager", dynamic=True, fullgraph=True)
    flex, matmul = both_ways(groups, captured)
    torch.testing.assert_close(flex, matmul, atol=1e-6, rtol=0)


def test_one_graph_serves_all_lengths():
    counter = CompileCounter()
    captured = torch.compile(attend, backend=counter, dynamic=True, fullgraph=True)
    for groups in (
        RAGGED,
        [(140, [200]), (300, [2])],
        [(9, [130]), (8, [1, 1]), (1000, [64, 512])],
        [(20, [300] * 3)] * 2,
        [(3, [1])],
        EQUAL,
        [(128, [128])],
    ):
        flex, matmul = both_ways(groups, captured)
        torch.testing.assert_close(flex, matmul, atol=1e-6, rtol=0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            both_ways(groups, captured)
    assert counter.frame_count == 1

"""Which completions share a tile, and that every token is in exactly one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copd.policy.readers import tiles
from copd.policy.readers.tiles import build_tiles

CPU = torch.device("cpu")

ragged_groups = st.lists(
    st.lists(st.integers(0, 30), min_size=1, max_size=5), min_size=1, max_size=5
)


@given(ragged_groups, st.sampled_from([1, 2**10, 2**18]))
def test_every_token_of_every_head_is_in_one_tile(lengths, at_once):
    num_tokens = sum(map(sum, lengths))
    row = torch.arange(num_tokens * 12.0).view(num_tokens, 2, 3, 2)
    copied, visits = torch.full_like(row, -1.0), torch.zeros(num_tokens, 2, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_MAX_SCORES", at_once)
        built = build_tiles(lengths, 4, (2, 3), CPU)
    for tile in built:
        cells = tile.take(row)
        tile.put(cells, copied)
        tile.put(tile.take(visits) + 1, visits)
        prompts, group, width = tile.shape
        num_heads = len(range(2)[tile.heads])
        assert cells.shape == (prompts * num_heads, group, width * 3, 2)
    assert torch.equal(copied, row)
    assert (visits == 1).all()


def test_rows_of_a_tile_are_completions_of_its_prompts():
    lengths = [[2, 5], [6, 1], [0, 3]]
    owner = torch.repeat_interleave(torch.arange(3.0), torch.tensor([7, 7, 3]))
    of_prompt = torch.arange(3.0).view(3, 1, 1, 1)
    for tile in build_tiles(lengths, 4, (1, 1), CPU):
        cells = tile.hide(tile.take(owner.view(-1, 1, 1, 1)).contiguous())
        expected = tile.of_prompts(of_prompt)[:, :, None]
        assert ((cells == expected) | cells.isinf()).all()


def test_equal_lengths_are_slices():
    for tile in build_tiles([[7] * 4] * 6, 9, (2, 2), CPU):
        assert isinstance(tile.tokens, slice)
        assert isinstance(tile.prompts, slice)
        assert tile.padding is None


def test_a_tile_has_no_more_scores_than_allowed_unless_it_is_the_smallest(monkeypatch):
    monkeypatch.setattr(tiles, "_MAX_SCORES", 500)
    built = build_tiles([[7, 3], [9, 2], [7, 7], [30, 1]], 4, (3, 2), CPU)
    for tile in built:
        prompts, group, width = tile.shape
        num_heads = len(range(3)[tile.heads])
        scores = prompts * num_heads * group * 2 * width * (4 + width)
        assert scores <= 500 or prompts == num_heads == 1
    assert max(tile.shape[0] for tile in built) > 1


def test_little_of_ragged_tiles_is_padding():
    lengths = np.random.default_rng(0).geometric(1 / 24, size=(16, 8)).clip(3, 96)
    built = build_tiles(lengths.tolist(), 27, (2, 2), CPU)
    cells = sum(np.prod(tile.shape) for tile in built)
    assert cells < 1.6 * lengths.sum() < 0.6 * lengths.size * lengths.max()
    assert len(built) < 25

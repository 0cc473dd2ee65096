"""Rectangles and the shared-prompt softmax against explicit loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from copd.policy.policy import Policy
from copd.policy.readers import tiles
from copd.policy.readers.group_attention import attend_shared
from copd.policy.readers.rectangle import Rectangle
from copd.policy.readers.tiles import build_tiles
from copd.policy.rendering.render import Renderer

lengths_lists = st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(sum)


@given(lengths_lists)
def test_rectangle_pads_to_the_right_and_back(lengths):
    rectangle = Rectangle.build(lengths, torch.device("cpu"))
    row = torch.randn(1, 2, sum(lengths), 3, generator=torch.Generator().manual_seed(0))
    padded = rectangle.pad(row)
    assert padded.shape == (len(lengths), 2, max(lengths), 3)
    start = 0
    for index, length in enumerate(lengths):
        assert torch.equal(padded[index, :, :length], row[0, :, start : start + length])
        start += length
    assert torch.equal(rectangle.unpad(padded), row.transpose(1, 2))


def test_rectangle_of_equal_lengths_copies_nothing():
    rectangle = Rectangle.build([3, 3], torch.device("cpu"))
    row = torch.zeros(1, 2, 6, 4)
    assert rectangle.pad(row).data_ptr() == row.data_ptr()


RAGGED = [[3, 0, 5, 1], [2], [4, 4, 6]]


@pytest.fixture(params=["one key head", "few tiles", "no padding"])
def cuts(request, monkeypatch):
    """Limits under which tiles are as small, as wide and as narrow as possible."""
    at_once, similar = {"one key head": (1, 0.65), "few tiles": (10**6, 0.0)}.get(
        request.param, (10**6, 1.0)
    )
    monkeypatch.setattr(tiles, "_MAX_SCORES", at_once)
    monkeypatch.setattr(tiles, "_SIMILAR", similar)


def inputs_of(lengths, prompt_length, heads, width, seed=0):
    """Draw queries, own keys and values, and keys and values of prompts, in float64."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens, (key_heads, sharing) = sum(map(sum, lengths)), heads
    shapes = [(num_tokens, key_heads * sharing, width), *[(num_tokens, key_heads, width)] * 2]
    shapes += [(len(lengths), key_heads, prompt_length, width)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def by_role(inputs):
    """Group inputs into queries, own keys and values, and those of prompts."""
    query, own_keys, own_values, keys, values = inputs
    return query, (own_keys, own_values), (keys, values)


@pytest.mark.parametrize("lengths", [RAGGED, [[3, 3]] * 3], ids=["ragged", "equal"])
def test_attend_shared_equals_a_loop_over_queries(lengths, cuts):
    query, own, prompt = by_role(inputs_of(lengths, 6, (2, 2), 8))
    prompt_lengths = [6, 4, 1]
    padding = torch.arange(6) >= torch.tensor(prompt_lengths)[:, None]
    built = build_tiles(lengths, 6, (2, 2), torch.device("cpu"))
    mixed = attend_shared(query, own, prompt, 0.3, tiles=built, padding=padding)
    start = 0
    for which, group in enumerate(lengths):
        for length in group:
            for token, head in np.ndindex(length, 4):
                keys, values = (
                    torch.cat(
                        [
                            prompt[side][which, head // 2, : prompt_lengths[which]],
                            own[side][start : start + token + 1, head // 2],
                        ]
                    )
                    for side in (0, 1)
                )
                weights = (0.3 * keys @ query[start + token, head]).softmax(0)
                torch.testing.assert_close(mixed[start + token, head], weights @ values)
            start += length


@pytest.mark.parametrize("lengths", [[[1, 3], [2]], [[2]] * 2], ids=["ragged", "equal"])
def test_attend_shared_has_the_gradient_of_its_formula(lengths, cuts):
    """The hand-written backward pass against finite differences in float64."""
    inputs = [tensor.requires_grad_() for tensor in inputs_of(lengths, 3, (2, 2), 2, seed=1)]
    padding = torch.arange(3) >= torch.tensor([3, 2])[:, None]
    built = build_tiles(lengths, 3, (2, 2), torch.device("cpu"))

    def attend(*inputs):
        query, own, prompt = by_role(inputs)
        return attend_shared(query, own, prompt, 0.7, tiles=built, padding=padding)

    assert torch.autograd.gradcheck(attend, inputs)


def test_padding_never_reaches_a_gradient():
    """Padding cells hold token 0, which may be far from all keys of their prompt."""
    lengths = [[1], [3], [2]]
    inputs = inputs_of(lengths, 5, (1, 1), 4)
    inputs[0][0] *= 1e4  # token 0 fills the padding
    inputs = [tensor.requires_grad_() for tensor in inputs]
    query, own, prompt = by_role(inputs)
    built = build_tiles(lengths, 5, (1, 1), torch.device("cpu"))
    assert any(tile.padding is not None for tile in built)
    attend_shared(query, own, prompt, 1.0, tiles=built, padding=None).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)


def test_nothing_wider_than_the_row_is_saved_for_the_backward_pass():
    lengths = [[1] * 7 + [50], [2] * 8]
    inputs = [tensor.requires_grad_() for tensor in inputs_of(lengths, 5, (2, 2), 4)]
    query, own, prompt = by_role(inputs)
    built = build_tiles(lengths, 5, (2, 2), torch.device("cpu"))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda tensor: tensor):
        attend_shared(query, own, prompt, 0.5, tiles=built, padding=None)
    output, log_sums = query.numel(), query.numel() // 4
    assert sum(map(torch.numel, saved)) == sum(map(torch.numel, inputs)) + output + log_sums


SIZES = {
    "vocab_size": 112,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 98,
}


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (PhiForCausalLM(PhiConfig(**SIZES)), "one matrix without bias"),
        (CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.5)), "do not reproduce"),
        (GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)), "do not reproduce"),
        (MistralForCausalLM(MistralConfig(**SIZES, sliding_window=64)), "sliding_window"),
    ],
    ids=["head bias", "logit scale", "logits scaling", "sliding window"],
)
def test_models_that_packed_passes_cannot_reproduce_are_refused(reading, model, remedy):
    tokenizer = reading["llama"].tokenizer
    with pytest.raises(ValueError, match=remedy):
        Policy(model, Renderer(tokenizer, None))


def test_the_same_models_without_that_feature_are_accepted(reading):
    tokenizer = reading["llama"].tokenizer
    for model in (
        GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=1.0)),
        MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    ):
        assert Policy(model, Renderer(tokenizer, None)).vocab_size == 112

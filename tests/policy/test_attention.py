"""Rectangles and the shared-prompt softmax against loops written out."""

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

from copd.policy import group_attention
from copd.policy.attention import Rectangle
from copd.policy.group_attention import attend_shared
from copd.policy.policy import Policy
from copd.policy.render import Renderer

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


@pytest.mark.parametrize("at_once", [1, 10**6], ids=["one key head at a time", "all at once"])
def test_attend_shared_equals_a_loop_over_queries(at_once, monkeypatch):
    monkeypatch.setattr(group_attention, "_SCORES_AT_ONCE", at_once)
    num_prompts, group, heads, key_heads, steps, length, width = 2, 3, 4, 2, 5, 6, 8
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query = draw(num_prompts, heads, group, steps, width)
    own_shape = (num_prompts, key_heads, group, steps, width)
    own = draw(*own_shape), draw(*own_shape)
    prompt = (
        draw(num_prompts, key_heads, length, width),
        draw(num_prompts, key_heads, length, width),
    )
    prompt_lengths = [6, 4]
    padding = torch.arange(length) >= torch.tensor(prompt_lengths)[:, None]
    widths = [3, steps]
    mixed = attend_shared(query, own, prompt, 0.3, widths=widths, padding=padding)
    assert mixed.isfinite().all()
    for which, head, member, step in np.ndindex(num_prompts, heads, group, steps):
        if step >= widths[which]:
            continue
        key_head = head // (heads // key_heads)
        keys, values = (
            torch.cat(
                [
                    prompt[part][which, key_head, : prompt_lengths[which]],
                    own[part][which, key_head, member, : step + 1],
                ]
            )
            for part in (0, 1)
        )
        weights = (0.3 * keys @ query[which, head, member, step]).softmax(0)
        torch.testing.assert_close(mixed[which, head, member, step], weights @ values)


def test_attend_shared_has_the_gradient_of_its_formula():
    """The backward pass is written by hand: finite differences in float64."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 4, 2, 3, 4), *[(2, 2, 2, 3, 4)] * 2, *[(2, 2, 5, 4)] * 2]
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    padding = torch.arange(5) >= torch.tensor([5, 3])[:, None]

    def attend(query, own_keys, own_values, prompt_keys, prompt_values):
        own, prompt = (own_keys, own_values), (prompt_keys, prompt_values)
        return attend_shared(query, own, prompt, 0.7, widths=[3, 1], padding=padding)

    assert torch.autograd.gradcheck(attend, inputs)


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
def test_models_it_would_get_wrong_are_refused(reading, model, remedy):
    tokenizer = reading["llama"].tokenizer
    with pytest.raises(ValueError, match=remedy):
        Policy(model, Renderer(tokenizer, None))


def test_the_same_models_without_the_odd_part_are_accepted(reading):
    tokenizer = reading["llama"].tokenizer
    for model in (
        GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=1.0)),
        MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    ):
        assert Policy(model, Renderer(tokenizer, None)).vocab_size == 112

"""Layers written out against the model's own, and the models that must not be written out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from copd.policy import Policy
from copd.policy.decoding import Decoding
from copd.policy.written_decoding import WrittenDecoding


def both(policy: Policy, prompts) -> tuple[Decoding, WrittenDecoding]:
    with torch.no_grad():
        prefix = policy.read(prompts)
    written_out = policy.backbone.written_out()
    assert written_out is not None
    prompt_of_row = torch.tensor([0, 0, 1, 2, 2, 2])
    plain = Decoding(policy.backbone, prefix, prompt_of_row, is_static=False)
    on_axes = policy.backbone.on_axes
    return plain, WrittenDecoding.begin(written_out, prefix, prompt_of_row, on_axes)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["seeing", "llama", "qwen3"])
def test_steps_give_the_states_of_the_models_own_layers(
    seeing, reading, prompts_of, kind, monkeypatch
):
    policy = seeing if kind == "seeing" else reading[kind]
    plain, written = both(policy, prompts_of(policy, "mixed" if kind == "seeing" else "text"))
    tokens = torch.randint(0, 90, (5, 6), generator=torch.Generator().manual_seed(0))
    asked: list[str] = []
    for step in tokens[:3]:
        torch.testing.assert_close(written.step(step), plain.step(step), atol=2e-5, rtol=0)
    kept = torch.tensor([1, 3, 5])
    plain, written = plain.keep(kept), written.keep(kept)
    body = type(policy.backbone.body)
    with monkeypatch.context() as patch:
        patch.setattr(body, "forward", lambda *_, **__: asked.append("model"))
        states = [written.step(step) for step in tokens[3:, kept]]
    assert asked == []
    for step, state in zip(tokens[3:, kept], states, strict=True):
        torch.testing.assert_close(state, plain.step(step), atol=2e-5, rtol=0)


def add_bias(layer: Any) -> None:
    layer.mlp.down_proj.bias = nn.Parameter(torch.ones(64))


def add_adapter(layer: Any) -> None:
    """As PEFT puts one in: the matrix becomes a part of another module."""
    layer.self_attn.q_proj = nn.Sequential(layer.self_attn.q_proj)


def add_subclass(layer: Any) -> None:
    class Scaled(nn.Linear):
        pass

    layer.self_attn.v_proj.__class__ = Scaled


def add_hook(layer: Any) -> None:
    layer.mlp.register_forward_hook(lambda module, args, output: 2 * output)


def add_norm(layer: Any) -> None:
    layer.post_feedforward_layernorm = nn.RMSNorm(64)


def make_half(layer: Any) -> None:
    layer.mlp.bfloat16()


@pytest.mark.parametrize(
    "change", [add_bias, add_adapter, add_subclass, add_hook, add_norm, make_half]
)
def test_a_layer_with_any_other_part_is_left_to_the_model(
    reading_folders: dict[str, Path], change: Callable[[Any], None]
):
    policy = Policy.load(reading_folders["qwen3"])
    assert policy.backbone.written_out() is not None
    change(policy.backbone.body.layers[1])
    assert policy.backbone.written_out() is None


def test_a_layer_of_the_same_parts_but_other_numbers_is_left_to_the_model(
    reading_folders: dict[str, Path], monkeypatch
):
    policy = Policy.load(reading_folders["llama"])
    norm = type(policy.backbone.body.norm)
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, x: plain(self, x) + 0.01 * x)
    assert policy.backbone.written_out() is None


def test_positions_that_depend_on_the_length_of_a_row_are_left_to_the_model(reading, monkeypatch):
    backbone = reading["llama"].backbone
    assert backbone.written_out() is not None
    monkeypatch.setattr(backbone.body.rotary_emb, "rope_type", "dynamic")
    assert backbone.written_out() is None


@torch.no_grad()
def test_storage_grows_with_what_is_in_it_after_rows_have_left(seeing, prompts_of, monkeypatch):
    monkeypatch.setattr("copd.policy.written_decoding._FIRST_WIDTH", 2)
    plain, written = both(seeing, prompts_of(seeing, "mixed"))
    tokens = torch.randint(0, 90, (9, 6), generator=torch.Generator().manual_seed(0))
    rows = torch.arange(6)
    for number, step in enumerate(tokens):
        states = written.step(step[rows])
        torch.testing.assert_close(states, plain.step(step[rows]), atol=2e-5, rtol=0)
        if number in (1, 4):  # full, and half full
            kept = torch.tensor([0, 2, 3] if number == 4 else [0, 1, 3, 4, 5])
            plain, written, rows = plain.keep(kept), written.keep(kept), rows[kept]
    assert written.own.shape[5] == 16


def test_large_layers_and_mixed_precision_gain_nothing(reading, monkeypatch):
    backbone = reading["llama"].backbone
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone.written_out() is None
    monkeypatch.setattr("copd.policy.text_layers._MOST_WEIGHTS", 1000)
    assert backbone.written_out() is None


def test_weights_are_those_of_the_moment(reading_folders: dict[str, Path], prompts_of):
    policy = Policy.load(reading_folders["qwen3"])
    prompts = prompts_of(policy, "text")
    first, _ = both(policy, prompts)
    with torch.no_grad():
        policy.backbone.body.layers[0].mlp.up_proj.weight.mul_(2.0)
        plain, written = both(policy, prompts)
        tokens = torch.full((6,), 7)
        torch.testing.assert_close(written.step(tokens), plain.step(tokens), atol=2e-5, rtol=0)
        assert not torch.allclose(first.step(tokens), plain.step(tokens), atol=1e-3)

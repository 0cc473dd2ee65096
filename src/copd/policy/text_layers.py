"""The text layers of a small Llama or Qwen3, written out in few operations: for decoding on a CPU.

    x += o(attend(rotate(norm(q(x))), rotate(norm(k(x))), v(x)))      q, k, v of x after a norm
    x += down(act(gate(x)) * up(x))                                   x after a norm

A pass over few tokens costs what its operations cost, whatever their size. Recognised by the
modules a layer consists of; whether the numbers are the model's is for the caller to check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from copd.policy.attention import RowAttention

_LINEARS = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(
    f"mlp.{name}_proj" for name in ("gate", "up", "down")
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_PLACES = ("", "self_attn", "mlp", "mlp.act_fn")
_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}

_MOST_WEIGHTS = 2**24
"""Larger layers take so long that their operations do not matter, and a copy of them is memory."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """The weights of a layer as they are now, those that meet the same input as one matrix."""

    attention: Any
    norms: tuple[Tensor, Tensor]
    qkv: Float[Tensor, "QKV D"]
    head_norm: Float[Tensor, "heads d"] | None
    out: Float[Tensor, "Q D"]
    gate_up: Float[Tensor, "GU D"]
    act: nn.Module
    down: Float[Tensor, "I D"]

    @classmethod
    def build(cls, layer: nn.Module) -> "_Layer":
        weights: dict[str, Tensor] = dict(layer.named_parameters())
        *in_heads, out, gate, up, down = (weights[f"{name}.weight"] for name in _LINEARS)
        attention: Any = layer.get_submodule("self_attn")
        head_norms = [
            weights[f"{name}.weight"].expand(len(matrix) // attention.head_dim, -1)
            for name, matrix in zip(_HEAD_NORMS, in_heads, strict=False)
            if f"{name}.weight" in weights
        ]
        first, second = (weights[f"{name}.weight"] for name in _NORMS)
        return cls(
            attention,
            (first, second),
            torch.cat(in_heads),
            torch.cat(head_norms) if head_norms else None,
            out.T,
            torch.cat([gate, up]),
            layer.get_submodule("mlp.act_fn"),
            down.T,
        )


@dataclass(frozen=True, eq=False)
class TextLayers:
    """What stands between embeddings and last states; stale once a weight has changed."""

    body: Any
    layers: Sequence[_Layer]

    @classmethod
    def build(cls, body: Any) -> "TextLayers | None":
        """None where a layer has any other part, or where nothing would be gained."""
        weights = list(body.parameters())
        plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights)
        small = sum(w.numel() for w in weights) <= _MOST_WEIGHTS
        if not (plain and small) or torch.is_autocast_enabled("cpu"):
            return None
        if {name for name, _ in body.named_children()} != _PARTS:
            return None
        if not all(_is_usual(layer) for layer in body.layers):
            return None
        return cls(body, [_Layer.build(layer) for layer in body.layers])

    def forward(
        self,
        hidden: Float[Tensor, "N D"],
        positions: Int[Tensor, "... N"],
        attention: RowAttention,
    ) -> Float[Tensor, "N D"]:
        """The last hidden states of one row; without gradient."""
        cos, sin = (part[0, :, None] for part in self.body.rotary_emb(hidden[None], positions))
        width = cos.shape[-1]
        sin = sin * torch.ones(width).index_fill_(0, torch.arange(width // 2), -1.0)
        size, eps = hidden.shape[1:], self.body.norm.variance_epsilon
        for layer in self.layers:
            inward = rms_norm(hidden, size, layer.norms[0], eps)
            heads = linear(inward, layer.qkv).view(len(hidden), -1, width)
            rest = -(layer.attention.k_proj.out_features // width)
            turned, values = heads[:, :rest], heads[:, rest:]
            if layer.head_norm is not None:
                turned = rms_norm(turned, (width,), None, eps) * layer.head_norm
            turned = torch.addcmul(turned * cos, turned.roll(width // 2, -1), sin)
            parts = turned[:, :rest], turned[:, rest:], values
            row = (part.transpose(0, 1)[None] for part in parts)
            mixed = attention(layer.attention.layer_idx, *row, layer.attention.scaling)
            hidden = torch.addmm(hidden, mixed[0].flatten(1), layer.out)
            inward = rms_norm(hidden, size, layer.norms[1], eps)
            gate, up = linear(inward, layer.gate_up).chunk(2, dim=-1)
            hidden = torch.addmm(hidden, layer.act(gate).mul_(up), layer.down)
        return rms_norm(hidden, size, self.body.norm.weight, eps)


def _is_usual(layer: nn.Module) -> bool:
    """Whether a layer has exactly the parts that are written out here, and no bias."""
    modules = dict(layer.named_modules())
    names = {*_LINEARS, *_NORMS, *_PLACES}
    if modules.keys() - names == set(_HEAD_NORMS):
        names |= set(_HEAD_NORMS)
        head_dim = modules["self_attn"].head_dim
        if any(modules[name].weight.shape != (head_dim,) for name in _HEAD_NORMS):
            return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in modules.values()):
        return False  # someone wants to be asked
    matrices = {f"{name}.weight" for name in names - set(_PLACES)}
    return (
        modules.keys() == names
        and {name for name, _ in layer.named_parameters()} == matrices
        and all(type(modules[name]) is nn.Linear for name in _LINEARS)
    )

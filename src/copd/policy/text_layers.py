"""The text layers of a small Llama or Qwen3, written out in few operations: for decoding on a CPU.

    x += o(attend(rotate(norm(q(x))), rotate(norm(k(x))), v(x)))      q, k, v of x after a norm
    x += down(act(gate(x)) * up(x))                                   x after a norm

A pass over few tokens costs what its operations cost, whatever their size. Recognised by the
modules a layer consists of; whether the numbers are the model's is for the caller to check.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

_LINEARS = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(
    f"mlp.{name}_proj" for name in ("gate", "up", "down")
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_PLACES = ("", "self_attn", "mlp", "mlp.act_fn")
_PARTS = {"embed_tokens", "layers", "norm", "rotary_emb"}

_MOST_WEIGHTS = 2**24
"""Larger layers take so long that their operations do not matter, and a copy of them is memory."""

_STEADY = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on how long a row has become."""

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""Attention of one new token per row, from the layer's number, queries and keys `N H+Hk d` and
values `N Hk d` to `N Q`. The first are in pairs and not turned yet; queries hold the scale."""


@dataclass(frozen=True, eq=False)
class _Layer:
    """The weights of a layer as they are now, those that meet the same input as one matrix.

    The weight of a norm is in the matrix after it.
    """

    qkv: Float[Tensor, "QKV D"]
    head_norm: Float[Tensor, "heads d"] | None
    out: Float[Tensor, "Q D"]
    gate_up: Float[Tensor, "GU D"]
    act: nn.Module
    down: Float[Tensor, "I D"]

    @classmethod
    def build(cls, layer: nn.Module) -> "_Layer":
        weights: dict[str, Tensor] = dict(layer.named_parameters())
        query, key, value, out, gate, up, down = (weights[f"{name}.weight"] for name in _LINEARS)
        first, second = (weights[f"{name}.weight"] for name in _NORMS)
        norms = [weights[f"{n}.weight"] for n in _HEAD_NORMS if f"{n}.weight" in weights]
        attention: Any = layer.get_submodule("self_attn")
        by_head = [part.unflatten(0, (-1, attention.head_dim)) for part in (query, key)]
        if norms:
            norms[0] = norms[0] * attention.scaling
            each = zip(norms, by_head, strict=True)
            norms = [in_pairs(norm).expand(len(heads), -1) for norm, heads in each]
        else:
            by_head[0] = by_head[0] * attention.scaling
        turned = [in_pairs(heads.mT).mT.flatten(0, 1) for heads in by_head]
        return cls(
            torch.cat([*turned, value]).mul_(first),
            torch.cat(norms) if norms else None,
            out.T,
            torch.cat([gate, up]).mul_(second),
            layer.get_submodule("mlp.act_fn"),
            down.T,
        )


@dataclass(frozen=True, eq=False)
class TextLayers:
    """What stands between embeddings and last states; stale once a weight has changed."""

    body: Any
    layers: Sequence[_Layer]
    num_key_heads: int
    num_sharing: int
    """Query heads of a key head."""
    head_dim: int
    eps: Float[Tensor, "1"]

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
        is_steady = vars(body.rotary_emb).get("rope_type") in _STEADY
        if not is_steady or not all(_is_usual(layer) for layer in body.layers):
            return None
        attention = body.layers[0].self_attn
        width = attention.head_dim
        return cls(
            body,
            [_Layer.build(layer) for layer in body.layers],
            attention.k_proj.out_features // width,
            attention.q_proj.out_features // attention.k_proj.out_features,
            width,
            torch.tensor([body.norm.variance_epsilon]),
        )

    def turns(self, positions: Int[Tensor, "A N"]) -> Complex[Tensor, "N half"]:
        """What a head's pairs are multiplied by at these positions."""
        axes = positions if len(positions) == 1 else positions[:, None]
        cos, sin = (
            part[0, :, : self.head_dim // 2] for part in self.body.rotary_emb(self.eps, axes)
        )
        return torch.complex(cos, sin)

    def forward(self, token_ids: Int[Tensor, "N"], attend: Attend) -> Float[Tensor, "N D"]:
        """The last hidden states of one token per row; without gradient."""
        hidden: Tensor = self.body.embed_tokens(token_ids)
        for number, layer in enumerate(self.layers):
            heads = linear(self._normed(hidden), layer.qkv).unflatten(1, (-1, self.head_dim))
            turning, values = heads.tensor_split((-self.num_key_heads,), dim=1)
            if layer.head_norm is not None:
                turning = self._normed(turning).mul_(layer.head_norm)
            hidden.addmm_(attend(number, turning, values), layer.out)
            gate, up = linear(self._normed(hidden), layer.gate_up).chunk(2, dim=-1)
            hidden.addmm_(layer.act(gate).mul_(up), layer.down)
        return self._normed(hidden).mul_(self.body.norm.weight)

    def _normed(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """RMSNorm without its weight, in half the operations of torch's."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * torch.addcmul(self.eps, size, size, value=1 / x.shape[-1]).rsqrt_()


def in_pairs(heads: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Numbers i and i + d/2, which rotary positions turn together, beside each other."""
    return heads.unflatten(-1, (2, -1)).mT.flatten(-2)


def turn(
    pairs: Float[Tensor, "N heads d"], turns: Complex[Tensor, "N half"]
) -> Float[Tensor, "N heads d"]:
    """Rotary positions as complex numbers."""
    return torch.view_as_real(as_complex(pairs) * turns[:, None]).flatten(-2)


def as_complex(pairs: Float[Tensor, "... d"]) -> Complex[Tensor, "... half"]:
    """The same memory, a number per pair."""
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)))


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

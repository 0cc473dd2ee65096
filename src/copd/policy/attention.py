"""An attention function for unmodified transformers models that leaves attention to the caller."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "shared_prefix"
"""The name under which transformers finds `dispatch`."""

_UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Keywords by which a model asks for more than plain softmax attention over all earlier tokens."""

RowAttention = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]
"""Attention over one row of N tokens, which decides who attends to whom.

It maps the number of the layer, queries `1 H N d`, keys and values `1 Hk N d`, and the scale of the
scores to `1 N H d`.
"""


def dispatch(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    row_attention: RowAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend by `row_attention` where it is given, else by sdpa as transformers does.

    Transformers calls it with these arguments. Without `row_attention`, `generate` and padded
    batches work as in any model.
    """
    if row_attention is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(
            f"packed passes need plain attention over all earlier tokens: got {unsupported[0]} in "
            f"{type(module).__name__}. Choose a model without it (Qwen3-VL, Qwen3 and Llama work)."
        )
    layer: Any = module.layer_idx
    return row_attention(layer, query, key, value, kwargs["scaling"]), None


def install(model: PreTrainedModel) -> None:
    """Make the text layers of a model call `dispatch`; a vision tower keeps its own attention."""
    AttentionInterface.register(IMPLEMENTATION, dispatch)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)  # or padding would be attended to
    nested = model.config.get_text_config() is not model.config
    model.set_attn_implementation({"text_config": IMPLEMENTATION} if nested else IMPLEMENTATION)

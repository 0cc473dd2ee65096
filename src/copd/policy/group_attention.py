"""Attention of many completions over one prompt's keys and their own. Knows no rows, no model."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_SCORES_AT_ONCE = 2**18
"""Attention scores in memory at a time, one prompt and key head at least: what a core's cache
holds."""


def attend_shared(
    query: Float[Tensor, "P H G T d"],
    own: tuple[Float[Tensor, "P Hk G T d"], Float[Tensor, "P Hk G T d"]],
    prompt: tuple[Float[Tensor, "P Hk L d"], Float[Tensor, "P Hk L d"]],
    scale: float,
    *,
    widths: Sequence[int],
    padding: Bool[Tensor, "P L"] | None,
) -> Float[Tensor, "P H G T d"]:
    """One softmax over (prompt, own) keys, the prompt's never repeated; own keys causally.

    The queries of a whole group, and of all query heads that share a key head, form one matrix
    against the prompt's keys. `widths` are the tokens of each prompt's longest completion: what
    stands beyond them is finite and nothing else. True in `padding` hides a key of the prompt.
    """
    num_key_heads, num_tokens = prompt[0].shape[1], query.shape[3]
    shared = query.unflatten(1, (num_key_heads, -1)).permute(0, 1, 3, 4, 2, 5)  # P Hk G T H/Hk d
    parts = [shared.flatten(3, 4), *own, *prompt]
    if torch.is_autocast_enabled(query.device.type):
        parts = [part.to(torch.get_autocast_dtype(query.device.type)) for part in parts]
    mixed: Tensor = _GroupAttention.apply(
        *(part.flatten(0, 1) for part in parts),
        scale,
        [width for width in widths for _ in range(num_key_heads)],
        None if padding is None else padding.repeat_interleave(num_key_heads, dim=0),
    )
    by_token = mixed.unflatten(0, (-1, num_key_heads)).unflatten(3, (num_tokens, -1))
    return by_token.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)


def attend_step(
    query: Float[Tensor, "P H G 1 d"],
    own: tuple[Float[Tensor, "P Hk G U d"], Float[Tensor, "P Hk G U d"]],
    prompt: tuple[Float[Tensor, "P Hk L d"], Float[Tensor, "P Hk L d"]],
    scale: float,
    *,
    unwritten: Bool[Tensor, "1 U"] | None,
    padding: Bool[Tensor, "P L"] | None,
) -> Float[Tensor, "P H G 1 d"]:
    """`attend_shared` for one new token per completion, in few operations and without gradient.

    There the scores are small, and what costs is how many operations there are.
    """
    num_prompts, num_key_heads, group_size, _, width = own[0].shape
    shared = (query * scale).unflatten(1, (num_key_heads, -1)).transpose(2, 3)
    queries = shared.reshape(num_prompts * num_key_heads, -1, width)  # B (G H/Hk) d
    on_prompt = queries @ prompt[0].flatten(0, 1).mT
    if padding is not None:
        by_prompt = on_prompt.unflatten(0, (num_prompts, -1))
        by_prompt.masked_fill_(padding[:, None, None], -torch.inf)
    on_own = queries.unflatten(1, (group_size, -1)).flatten(0, 1) @ own[0].flatten(0, 2).mT
    if unwritten is not None:
        on_own.masked_fill_(unwritten, -torch.inf)
    scores = torch.cat([on_prompt, on_own.view(*on_prompt.shape[:2], -1)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
    to_prompt, to_own = weights.tensor_split([on_prompt.shape[2]], dim=-1)
    from_prompt = (to_prompt @ prompt[1].flatten(0, 1)).view(*on_own.shape[:2], width)
    mixed = torch.baddbmm(from_prompt, to_own.view(on_own.shape), own[1].flatten(0, 2))
    by_head = mixed.view(num_prompts, num_key_heads, group_size, -1, width)
    return by_head.transpose(2, 3).flatten(1, 2)[:, :, :, None]


class _GroupAttention(torch.autograd.Function):
    """`softmax([q k_prompt, q k_own]) [v_prompt, v_own]`, of which only the log-sum-exp is kept.

    As in FlashAttention (2205.14135) the backward pass makes the weights again from it, so memory
    grows with the tokens and not with their pairs. B = P Hk, R = T H/Hk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "B G R d"],
        own_keys: Float[Tensor, "B G T d"],
        own_values: Float[Tensor, "B G T d"],
        prompt_keys: Float[Tensor, "B L d"],
        prompt_values: Float[Tensor, "B L d"],
        scale: float,
        widths: list[int],
        padding: Bool[Tensor, "B L"] | None,
    ) -> Float[Tensor, "B G R d"]:
        output = torch.zeros_like(query, memory_format=torch.contiguous_format)
        log_sums = torch.zeros_like(output[..., :1], dtype=_wide(query))
        for part, tokens, rows in _parts(query, own_keys, prompt_keys, widths):
            scaled = query[rows] * scale
            on_prompt = _prompt_scores(scaled, prompt_keys[part], padding, part)
            on_own = _own_scores(scaled, own_keys[tokens])
            largest = torch.maximum(on_prompt.amax(-1, keepdim=True), on_own.amax(-1, keepdim=True))
            on_prompt.sub_(largest).exp_()
            on_own.sub_(largest).exp_()
            total = on_prompt.sum(-1, keepdim=True) + on_own.sum(-1, keepdim=True)
            mixed = _rows(on_prompt.to(query.dtype)) @ prompt_values[part]
            mixed = mixed.view_as(scaled) + on_own.to(query.dtype) @ own_values[tokens]
            output[rows] = mixed / total
            log_sums[rows] = total.log_().add_(largest)
        ctx.save_for_backward(
            query, own_keys, own_values, prompt_keys, prompt_values, output, log_sums
        )
        ctx.scale, ctx.widths, ctx.padding = scale, widths, padding
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        *inputs, output, log_sums = ctx.saved_tensors
        query, own_keys, own_values, prompt_keys, prompt_values = inputs
        grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in inputs]
        to_query, to_own_keys, to_own_values, to_prompt_keys, to_prompt_values = grads
        (grad,) = grad_outputs
        removed = (grad * output).sum(-1, keepdim=True, dtype=log_sums.dtype)
        for part, tokens, rows in _parts(query, own_keys, prompt_keys, ctx.widths):
            scaled, given = query[rows] * ctx.scale, grad[rows].contiguous()
            on_prompt = _prompt_scores(scaled, prompt_keys[part], ctx.padding, part)
            on_own = _own_scores(scaled, own_keys[tokens])
            on_prompt.sub_(log_sums[rows]).exp_()
            on_own.sub_(log_sums[rows]).exp_()
            to_prompt_values[part] = _rows(on_prompt.to(grad.dtype)).mT @ _rows(given)
            to_own_values[tokens] = on_own.to(grad.dtype).mT @ given
            through = (_rows(given) @ prompt_values[part].mT).view_as(on_prompt)
            on_prompt = on_prompt.mul_(through.sub(removed[rows])).to(grad.dtype)
            through = given @ own_values[tokens].mT
            on_own = on_own.mul_(through.sub(removed[rows])).to(grad.dtype)
            to_prompt_keys[part] = _rows(on_prompt).mT @ _rows(scaled)
            to_own_keys[tokens] = on_own.mT @ scaled
            through = (_rows(on_prompt) @ prompt_keys[part]).view_as(scaled)
            to_query[rows] = (through + on_own @ own_keys[tokens]).mul_(ctx.scale)
        return *grads, None, None, None


Index = tuple[slice, slice, slice]


def _parts(
    query: Float[Tensor, "B G R d"],
    own_keys: Float[Tensor, "B G T d"],
    prompt_keys: Float[Tensor, "B L d"],
    widths: Sequence[int],
) -> Iterator[tuple[slice, Index, Index]]:
    """Runs of the axis B with few enough scores, and which own tokens and queries they have."""
    group_size, num_rows = query.shape[1:3]
    heads, length = num_rows // own_keys.shape[2], prompt_keys.shape[1]
    first = 0
    while first < len(widths):
        last, width = first + 1, widths[first]
        while last < len(widths):
            wider = max(width, widths[last])
            scores = (last + 1 - first) * group_size * heads * wider * (length + wider)
            if scores > _SCORES_AT_ONCE:
                break
            last, width = last + 1, wider
        part = slice(first, last)
        if width:
            everyone = slice(None)
            yield part, (part, everyone, slice(width)), (part, everyone, slice(heads * width))
        first = last


def _prompt_scores(
    scaled: Float[Tensor, "b G R d"],
    keys: Float[Tensor, "b L d"],
    padding: Bool[Tensor, "B L"] | None,
    part: slice,
) -> Float[Tensor, "b G R L"]:
    scores = (_rows(scaled) @ keys.mT).to(_wide(scaled))
    if padding is not None:
        scores.masked_fill_(padding[part, None], -torch.inf)
    return scores.unflatten(1, scaled.shape[1:3])


def _own_scores(
    scaled: Float[Tensor, "b G R d"], keys: Float[Tensor, "b G T d"]
) -> Float[Tensor, "b G R T"]:
    scores = (scaled @ keys.mT).to(_wide(scaled))
    num_tokens = keys.shape[2]
    future = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=keys.device).triu(1)
    return scores.masked_fill_(
        future.repeat_interleave(scaled.shape[2] // num_tokens, 0), -torch.inf
    )


def _rows(groups: Float[Tensor, "b G R x"]) -> Float[Tensor, "b GR x"]:
    """A group's queries as one matrix."""
    return groups.flatten(1, 2)


def _wide(tensor: Tensor) -> torch.dtype:
    """In which softmax is computed: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)

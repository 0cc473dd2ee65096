"""Attention of many completions over the keys of their prompt and their own."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from copd.policy.readers.tiles import Tile


def attend_shared(
    query: Float[Tensor, "N H d"],
    own: tuple[Float[Tensor, "N Hk d"], Float[Tensor, "N Hk d"]],
    prompt: tuple[Float[Tensor, "P Hk L d"], Float[Tensor, "P Hk L d"]],
    scale: float,
    *,
    tiles: Sequence[Tile],
    padding: Bool[Tensor, "P L"] | None,
) -> Float[Tensor, "N H d"]:
    """Attend with one softmax over the prompt's keys, never repeated, and own keys, causally.

    `own` and `prompt` are keys and values. Completions lie end to end in one row; `tiles` say
    where. All queries of a group that share a key head are one matrix against the prompt's keys.
    True in `padding` hides a key of the prompt.
    """
    num_key_heads = own[0].shape[1]
    inputs = [query.unflatten(1, (num_key_heads, -1)), *(tensor[:, :, None] for tensor in own)]
    inputs += [tensor.contiguous() for tensor in prompt]
    if torch.is_autocast_enabled(query.device.type):
        inputs = [tensor.to(torch.get_autocast_dtype(query.device.type)) for tensor in inputs]
    mixed: Tensor = _GroupAttention.apply(*inputs, scale, tiles, padding)
    return mixed.flatten(1, 2)


def attend_step(
    query: Float[Tensor, "P H G 1 d"],
    own: tuple[Float[Tensor, "P Hk G U d"], Float[Tensor, "P Hk G U d"]],
    prompt: tuple[Float[Tensor, "P Hk L d"], Float[Tensor, "P Hk L d"]],
    scale: float,
    *,
    unwritten: Bool[Tensor, "1 U"] | None,
    padding: Bool[Tensor, "P L"] | None,
) -> Float[Tensor, "P H G 1 d"]:
    """Attend like `attend_shared` with one new token per completion, without a gradient.

    The scores of a step are small: its cost is the number of operations, so there are few.
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
    to_prompt, to_own = weights.tensor_split((on_prompt.shape[2],), dim=-1)
    from_prompt = torch.bmm(to_prompt, prompt[1].flatten(0, 1)).view(*on_own.shape[:2], -1)
    mixed = torch.baddbmm(from_prompt, to_own.view(on_own.shape), own[1].flatten(0, 2))
    by_head = mixed.view(num_prompts, num_key_heads, group_size, -1, width)
    return by_head.transpose(2, 3).flatten(1, 2)[:, :, :, None]


class _GroupAttention(torch.autograd.Function):
    """`softmax([q k_prompt, q k_own]) [v_prompt, v_own]`, which stores only the log-sum-exp.

    As in FlashAttention (2205.14135), the backward pass computes the weights again from it, so
    memory grows with the number of tokens and not of their pairs. h is H/Hk.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Float[Tensor, "N Hk h d"],
        own_keys: Float[Tensor, "N Hk 1 d"],
        own_values: Float[Tensor, "N Hk 1 d"],
        prompt_keys: Float[Tensor, "P Hk L d"],
        prompt_values: Float[Tensor, "P Hk L d"],
        scale: float,
        tiles: Sequence[Tile],
        padding: Bool[Tensor, "P L"] | None,
    ) -> Float[Tensor, "N Hk h d"]:
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        log_sums = torch.empty_like(output[..., :1], dtype=_wide(query))
        for tile in tiles:
            scaled = tile.take(query) * scale
            keys, values = tile.take(own_keys), tile.take(own_values)
            on_prompt = _prompt_scores(scaled, tile.of_prompts(prompt_keys), padding, tile)
            on_own = _own_scores(scaled, keys)
            largest = torch.maximum(on_prompt.amax(-1, keepdim=True), on_own.amax(-1, keepdim=True))
            on_prompt.sub_(largest).exp_()
            on_own.sub_(largest).exp_()
            total = on_prompt.sum(-1, keepdim=True) + on_own.sum(-1, keepdim=True)
            mixed = _rows(on_prompt.to(query.dtype)) @ tile.of_prompts(prompt_values)
            mixed = mixed.view_as(scaled) + on_own.to(query.dtype) @ values
            tile.put(mixed / total, output)
            tile.put(total.log_().add_(largest), log_sums)
        ctx.save_for_backward(
            query, own_keys, own_values, prompt_keys, prompt_values, output, log_sums
        )
        ctx.scale, ctx.tiles, ctx.padding = scale, tiles, padding
        return output

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        *inputs, output, log_sums = ctx.saved_tensors
        query, own_keys, own_values, prompt_keys, prompt_values = inputs
        to_query, to_own_keys, to_own_values = (torch.empty_like(row) for row in inputs[:3])
        to_prompt_keys, to_prompt_values = (torch.zeros_like(each) for each in inputs[3:])
        for tile in ctx.tiles:
            scaled, given = tile.take(query) * ctx.scale, tile.take(grad_outputs[0])
            keys, values = tile.take(own_keys), tile.take(own_values)
            removed = (given * tile.take(output)).sum(-1, keepdim=True, dtype=log_sums.dtype)
            total = tile.hide(tile.take(log_sums))
            tile_prompt_keys = tile.of_prompts(prompt_keys)
            on_prompt = _prompt_scores(scaled, tile_prompt_keys, ctx.padding, tile)
            on_prompt = on_prompt.sub_(total).exp_()
            on_own = _own_scores(scaled, keys).sub_(total).exp_()
            tile.add_to_prompts(
                _rows(on_prompt.to(given.dtype)).mT @ _rows(given), to_prompt_values
            )
            tile.put(on_own.to(given.dtype).mT @ given, to_own_values)
            through = (_rows(given) @ tile.of_prompts(prompt_values).mT).view_as(on_prompt)
            on_prompt = on_prompt.mul_(through.sub(removed)).to(given.dtype)
            through = given @ values.mT
            on_own = on_own.mul_(through.sub(removed)).to(given.dtype)
            tile.add_to_prompts(_rows(on_prompt).mT @ _rows(scaled), to_prompt_keys)
            tile.put(on_own.mT @ scaled, to_own_keys)
            through = (_rows(on_prompt) @ tile_prompt_keys).view_as(scaled)
            tile.put((through + on_own @ keys).mul_(ctx.scale), to_query)
        return to_query, to_own_keys, to_own_values, to_prompt_keys, to_prompt_values, *[None] * 3


def _prompt_scores(
    scaled: Float[Tensor, "bk g wh d"],
    keys: Float[Tensor, "bk L d"],
    padding: Bool[Tensor, "P L"] | None,
    tile: Tile,
) -> Float[Tensor, "bk g wh L"]:
    scores = (_rows(scaled) @ keys.mT).to(_wide(scaled))
    if padding is not None:
        by_prompt = scores.unflatten(0, (tile.shape[0], -1))
        by_prompt.masked_fill_(padding[tile.prompts, None, None], -torch.inf)
    return scores.unflatten(1, scaled.shape[1:3])


def _own_scores(
    scaled: Float[Tensor, "bk g wh d"], keys: Float[Tensor, "bk g w d"]
) -> Float[Tensor, "bk g wh w"]:
    scores = (scaled @ keys.mT).to(_wide(scaled))
    num_tokens = keys.shape[2]
    future = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=keys.device).triu(1)
    return scores.masked_fill_(
        future.repeat_interleave(scaled.shape[2] // num_tokens, 0), -torch.inf
    )


def _rows(groups: Float[Tensor, "bk g wh x"]) -> Float[Tensor, "bk gwh x"]:
    """View the queries of a group as one matrix."""
    return groups.flatten(1, 2)


def _wide(tensor: Tensor) -> torch.dtype:
    """Return the type of the softmax: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)

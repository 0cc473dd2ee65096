"""Rows of completions growing by a token a step, through layers written out in few operations.

Knows no transformers model, no sampling and no end of a completion.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from copd.policy.attention import Rectangle
from copd.policy.group_attention import mix_step
from copd.policy.packing import SharedPrefix
from copd.policy.text_layers import TextLayers, as_complex, in_pairs

_FIRST_WIDTH = 32
"""How many tokens fresh storage has room for; it doubles whenever it is full."""


class WrittenDecoding:
    """What `Decoding` is, for small models on a CPU, where a step costs what its calls cost.

    Attention is in slots, as many for every prompt as the largest group still has. What all layers
    need of a step is looked up once: how far heads turn, where to write, what to read.
    """

    def __init__(
        self,
        layers: TextLayers,
        prefix: SharedPrefix,
        prompt_of_row: Int[Tensor, "R"],
        on_axes: Callable[[Tensor], Tensor],
    ) -> None:
        """For rows without a token; `prefix` as `begin` makes it, `on_axes` that of a backbone."""
        self.layers, self.on_axes = layers, on_axes
        self.prefix, self.prompt_of_row = prefix, prompt_of_row
        num_prompts, num_key_heads, _, width = prefix.keys[0].shape
        self.rectangle = Rectangle.of_groups(prompt_of_row, num_prompts, prompt_of_row.device)
        group_size = self.rectangle.num_sequences // num_prompts
        self.groups = (num_prompts, group_size)
        self.hidden = None if prefix.padding is None else _hidden(prefix.padding, num_key_heads)
        self.prompts = [
            (prefix.keys[layer].flatten(0, 1).mT, prefix.values[layer].flatten(0, 1))
            for layer in range(len(layers.layers))
        ]
        queries = torch.empty(num_prompts, num_key_heads, group_size, layers.num_sharing, width)
        self.to_queries = as_complex(queries).transpose(1, 2)  # P G Hk h d/2
        self.by_prompt = queries.flatten(2, 3).flatten(0, 1)
        self.by_row = queries.flatten(0, 2)
        self.num_steps = 0
        shape = num_prompts, num_key_heads, group_size, 0, width
        self.own = torch.empty(len(layers.layers), 2, *shape)
        self.turns = torch.empty(0, width // 2, dtype=torch.complex64)
        self.first_turn = int(prefix.next_positions.min())
        self.next_turn = (prefix.next_positions - self.first_turn).repeat_interleave(group_size)

    @classmethod
    def begin(
        cls,
        layers: TextLayers,
        prefix: SharedPrefix,
        prompt_of_row: Int[Tensor, "R"],
        on_axes: Callable[[Tensor], Tensor],
    ) -> "WrittenDecoding":
        """After prompts as a model has read them."""
        keys = {layer: in_pairs(part) for layer, part in prefix.keys.items()}
        values = {layer: part.contiguous() for layer, part in prefix.values.items()}
        return cls(layers, replace(prefix, keys=keys, values=values), prompt_of_row, on_axes)

    def step(self, token_ids: Int[Tensor, "R"]) -> Float[Tensor, "R D"]:
        """The states after one more token in every row."""
        if self.own.shape[5] == self.num_steps:
            self._make_room()
        turn = self.turns.index_select(0, self.next_turn).view(*self.groups, 1, -1)
        column = self.own.select(5, self.num_steps).transpose(3, 4)  # layers 2 P G Hk d
        past = self.own.narrow(5, 0, self.num_steps + 1).flatten(2, 4)  # layers 2 PHkG U d
        self.turn = turn, turn.unsqueeze(2)
        self.to_own = as_complex(column[:, 0]).unbind(), column[:, 1].unbind()
        self.of_own = past[:, 0].mT.unbind(), past[:, 1].unbind()
        states = self.layers.forward(token_ids, self._attend)
        self.next_turn += 1
        self.num_steps += 1
        return states

    def keep(self, rows: Int[Tensor, "K"]) -> "WrittenDecoding":
        """The same without the other rows, nor the prompts that have none left."""
        prompts, prompt_of_row = self.prompt_of_row[rows].unique(return_inverse=True)
        everyone = len(prompts) == self.groups[0]
        prefix = self.prefix if everyone else self.prefix.select(prompts)
        kept = WrittenDecoding(self.layers, prefix, prompt_of_row, self.on_axes)
        slots = self.rectangle.slots_in(kept.rectangle, rows)
        kept.num_steps, kept.turns, kept.first_turn = self.num_steps, self.turns, self.first_turn
        kept.next_turn = self.next_turn[slots]
        shape = self.own.shape[2:5]
        cells = torch.arange(shape.numel()).view(shape)
        by_slot = cells.transpose(1, 2).flatten(0, 1)[slots]  # P'G' Hk
        chosen = by_slot.unflatten(0, kept.groups).transpose(1, 2)
        own = self.own.flatten(2, 4).index_select(2, chosen.flatten())
        kept.own = own.unflatten(2, chosen.shape)
        return kept

    def _make_room(self) -> None:
        """For twice the tokens, and how far heads turn at each."""
        more = max(self.num_steps, _FIRST_WIDTH)
        self.own = pad(self.own, (0, 0, 0, more))
        end = self.first_turn + int(self.next_turn.max()) + more
        self.turns = self.layers.turns(self.on_axes(torch.arange(self.first_turn, end)))

    def _attend(
        self, layer: int, turning: Float[Tensor, "R heads d"], values: Float[Tensor, "R Hk d"]
    ) -> Float[Tensor, "R Q"]:
        if self.rectangle.token_of_cell is not None:
            turning = turning.index_select(0, self.rectangle.token_of_cell)
            values = values.index_select(0, self.rectangle.token_of_cell)
        _, _, num_key_heads, num_sharing, _ = self.to_queries.shape
        pairs = as_complex(turning.unflatten(0, self.groups))
        queries, keys = pairs.tensor_split((-num_key_heads,), dim=2)
        torch.mul(queries.unflatten(2, (-1, num_sharing)), self.turn[1], out=self.to_queries)
        torch.mul(keys, self.turn[0], out=self.to_own[0][layer])
        self.to_own[1][layer].copy_(values.unflatten(0, self.groups))
        prompt_keys, prompt_values = self.prompts[layer]
        if self.hidden is None:
            on_prompt = torch.bmm(self.by_prompt, prompt_keys)
        else:
            on_prompt = torch.baddbmm(self.hidden, self.by_prompt, prompt_keys)
        on_own = torch.bmm(self.by_row, self.of_own[0][layer])
        mixed = mix_step(on_prompt, on_own, prompt_values, self.of_own[1][layer])
        by_slot = mixed.view(self.groups[0], num_key_heads, self.groups[1], -1).transpose(1, 2)
        cells = by_slot.flatten(2).flatten(0, 1)
        rows = self.rectangle.cell_of_token
        return cells if rows is None else cells.index_select(0, rows)


def _hidden(padding: Tensor, num_key_heads: int) -> Float[Tensor, "PHk 1 L"]:
    """What is added to scores so that no query sees padding."""
    scores = torch.zeros(padding.shape).masked_fill_(padding, -torch.inf)
    return scores.repeat_interleave(num_key_heads, 0)[:, None]

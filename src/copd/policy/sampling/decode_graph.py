"""A decode step on storage that does not move, so that a GPU can replay it as a CUDA graph."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from copd.policy.backbone import Backbone
from copd.policy.readers.group_attention import attend_step
from copd.policy.readers.rectangle import Rectangle

Keys = dict[int, tuple[Tensor, Tensor]]
"""Keys and values by layer: of prompts `P Hk L d`, of sampled tokens `P Hk G W d`."""


@dataclass(eq=False)
class DecodeStep:
    """Computes the states after one more token in every row, and advances to the next step.

    A static step does not depend on the number of steps: the column to write is a tensor, and later
    columns are masked. A step that is not static cuts them off instead.
    """

    backbone: Backbone
    rectangle: Rectangle
    prompt: Keys
    padding: Bool[Tensor, "P L"] | None
    own: Keys
    """Storage of the sampled tokens' keys and values, with room for W tokens per row."""
    token_ids: Int[Tensor, "R"]
    """To be filled in before a call."""
    positions: Int[Tensor, "R"]
    column: Int[Tensor, "1"]
    num_steps: int
    is_static: bool

    def __call__(self) -> Float[Tensor, "R D"]:
        unwritten = None
        if self.is_static:
            room = next(iter(self.own.values()))[0].shape[3]
            unwritten = (torch.arange(room, device=self.column.device) > self.column)[None]
        attention = partial(self._attend, unwritten)
        axes = self.backbone.on_axes(self.positions)
        states = self.backbone.forward(self.token_ids, axes, attention)
        self.positions.add_(1)
        self.column.add_(1)
        self.num_steps += 1
        return states

    def _attend(
        self,
        unwritten: Bool[Tensor, "1 W"] | None,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
    ) -> Tensor:
        own_keys, own_values = self.own[layer]
        queries, keys, values = (
            self.rectangle.pad_groups(row, len(own_keys)) for row in (query, key, value)
        )
        own_keys.index_copy_(3, self.column, keys.to(own_keys.dtype))
        own_values.index_copy_(3, self.column, values.to(own_values.dtype))
        if unwritten is None:
            written = slice(self.num_steps + 1)
            own_keys, own_values = own_keys[..., written, :], own_values[..., written, :]
        mixed = attend_step(
            queries,
            (own_keys, own_values),
            self.prompt[layer],
            scale,
            unwritten=unwritten,
            padding=self.padding,
        )
        return self.rectangle.unpad_groups(mixed)


class Replay:
    """A function without arguments that is replayed as a CUDA graph from its second call on.

    The first call is an ordinary one: it warms up libraries and, under autocast, casts the weights.
    The graph reads those casts where they are, so all calls belong in one autocast context. A call
    overwrites the result of the call before.
    """

    def __init__(self, function: Callable[[], Tensor]) -> None:
        self._function = function
        self._is_warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output = torch.empty(0)

    def __call__(self) -> Tensor:
        if not self._is_warm:
            self._is_warm = True
            return self._function()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._output = self._function()
        self._graph.replay()  # capturing alone runs nothing
        return self._output

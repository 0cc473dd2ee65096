"""One decode step as work on storage that never moves, so that a GPU can replay it as a graph.

Knows no sampling, and not which rows have ended.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from copd.policy.backbone import Backbone
from copd.policy.readers.attention import Rectangle
from copd.policy.readers.group_attention import attend_step
from copd.policy.readers.packed import SharedPrefix

OwnKeys = dict[int, tuple[Tensor, Tensor]]
"""Keys and values of what rows have written, by layer: `P Hk G W d` with room for W tokens."""


@dataclass(frozen=True, eq=False)
class StaticStep:
    """The state after one more token in every row.

    Nothing here depends on how many steps there were but the contents of tensors: the column to
    write is one, and columns after it are masked instead of cut off. A call leaves `positions` and
    `column` ready for the next.
    """

    backbone: Backbone
    rectangle: Rectangle
    prompt: Mapping[int, tuple[Float[Tensor, "P Hk L d"], Float[Tensor, "P Hk L d"]]]
    padding: Bool[Tensor, "P L"] | None
    own: OwnKeys
    token_ids: Int[Tensor, "R"]
    """To be filled in before a call."""
    positions: Int[Tensor, "R"]
    column: Int[Tensor, "1"]

    @classmethod
    def build(
        cls,
        backbone: Backbone,
        prefix: SharedPrefix,
        prompt_of_row: Int[Tensor, "R"],
        rectangle: Rectangle,
        own: OwnKeys,
        num_steps: int,
    ) -> "StaticStep":
        """For rows that have written `num_steps` tokens, with room for one more at least."""
        prompt = {
            layer: (as_computed(keys), as_computed(prefix.values[layer]))
            for layer, keys in prefix.keys.items()
        }
        positions = prefix.next_positions[prompt_of_row] + num_steps
        column = torch.full((1,), num_steps, device=positions.device)
        tokens = torch.zeros_like(prompt_of_row)
        return cls(backbone, rectangle, prompt, prefix.padding, own, tokens, positions, column)

    @property
    def room(self) -> int:
        """Tokens a row has room for."""
        return next(iter(self.own.values()))[0].shape[3]

    def __call__(self) -> Float[Tensor, "R D"]:
        unwritten = torch.arange(self.room, device=self.column.device) > self.column
        attention = partial(self._attend, unwritten[None])
        axes = self.backbone.on_axes(self.positions)
        states = self.backbone.forward(self.token_ids, axes, attention)
        self.positions.add_(1)
        self.column.add_(1)
        return states

    def _attend(
        self,
        unwritten: Bool[Tensor, "1 W"],
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
    ) -> Tensor:
        own_keys, own_values = self.own[layer]
        num_prompts = len(own_keys)
        queries, keys, values = (
            self.rectangle.pad_groups(part, num_prompts) for part in (query, key, value)
        )
        own_keys.index_copy_(3, self.column, keys.to(own_keys.dtype))
        own_values.index_copy_(3, self.column, values.to(own_values.dtype))
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
    """A function without arguments, from its second call on replayed as a CUDA graph.

    The first call is an ordinary one: it warms up libraries and, under autocast, casts the weights.
    The graph reads those casts where they are, so calls belong into one autocast context. What a
    call returns is overwritten by the next.
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


def as_computed(tensor: Tensor) -> Tensor:
    """In the type attention will compute in, cast once instead of at every step."""
    device = tensor.device.type
    enabled = torch.is_autocast_enabled(device)
    return tensor.to(torch.get_autocast_dtype(device)) if enabled else tensor

"""Rows of completions growing by a token a step. Knows no sampling and no end of a completion."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from copd.policy.backbone import Backbone
from copd.policy.readers.attention import Rectangle
from copd.policy.readers.group_attention import attend_step
from copd.policy.readers.packed import SharedPrefix
from copd.policy.sampling.decode_graph import OwnKeys, Replay, StaticStep, as_computed

_FIRST_WIDTH = 32
"""How many tokens a fresh key buffer has room for; it doubles whenever it is full."""

_FIRST_STATIC_WIDTH = 256
"""The same where every doubling costs the capture of a graph."""


class Decoding:
    """Rows being written one token at a time; each attends to its prompt's keys and its own.

    Rows stand in slots, as many for every prompt as the largest group still has; when rows are
    dropped some slots stay empty. Own keys are written in place: for sampling, not for gradients.
    With `is_static` the storage stays where it is between doublings, as a GPU's graphs need it.
    """

    def __init__(
        self,
        backbone: Backbone,
        prefix: SharedPrefix,
        prompt_of_row: Int[Tensor, "R"],
        *,
        is_static: bool,
    ) -> None:
        self.is_static = is_static
        self.backbone = backbone
        self.prefix = prefix
        self.prompt_of_row = prompt_of_row
        self.rectangle = Rectangle.of_groups(
            prompt_of_row, len(prefix.last_states), backbone.device
        )
        self.own: OwnKeys = {}
        self.num_steps = 0
        self._static: tuple[StaticStep, Callable[[], Tensor]] | None = None

    def step(self, token_ids: Int[Tensor, "R"]) -> Float[Tensor, "R D"]:
        """The states after one more token in every row; static ones last until the next step."""
        if self.is_static:
            states = self._step_in_place(token_ids)
        else:
            positions = self.prefix.next_positions[self.prompt_of_row] + self.num_steps
            axes = self.backbone.on_axes(positions)
            states = self.backbone.forward(token_ids, axes, self._attend)
        self.num_steps += 1
        return states

    def keep(self, rows: Int[Tensor, "K"]) -> "Decoding":
        """The same without the other rows, nor the prompts that have none left."""
        prompts, prompt_of_row = self.prompt_of_row[rows].unique(return_inverse=True)
        everyone = len(prompts) == len(self.prefix.last_states)
        prefix = self.prefix if everyone else self.prefix.select(prompts)
        kept = Decoding(self.backbone, prefix, prompt_of_row, is_static=self.is_static)
        slots = self.rectangle.slots_in(kept.rectangle, rows)
        for layer, own in self.own.items():
            group = own[0].shape[2]
            chosen = (part[slots // group, :, slots % group] for part in own)  # S Hk W d
            keys, values = (
                part.unflatten(0, (len(prompts), -1)).transpose(1, 2) for part in chosen
            )
            kept.own[layer] = (keys.contiguous(), values.contiguous())
        kept.num_steps = self.num_steps
        return kept

    def _step_in_place(self, token_ids: Int[Tensor, "R"]) -> Float[Tensor, "R D"]:
        if self._static is None or self._static[0].room == self.num_steps:
            self.own = self._with_room()
            step = StaticStep.build(
                self.backbone,
                self.prefix,
                self.prompt_of_row,
                self.rectangle,
                self.own,
                self.num_steps,
            )
            self._static = step, Replay(step) if self.backbone.device.type == "cuda" else step
        step, run = self._static
        step.token_ids.copy_(token_ids)
        return run()

    def _with_room(self) -> OwnKeys:
        """Own keys with room for one more token at least, if need be twice as much as so far."""
        num_prompts = len(self.prefix.last_states)
        group_size = self.rectangle.num_sequences // num_prompts
        roomy = {}
        for layer, keys in self.prefix.keys.items():
            shape = (num_prompts, keys.shape[1], group_size, 0, keys.shape[3])
            nothing = as_computed(keys[:0]).new_zeros(shape)
            own = self.own.get(layer, (nothing, nothing))
            width = own[0].shape[3]
            more = 0 if width > self.num_steps else max(width, _FIRST_STATIC_WIDTH)
            roomy[layer] = tuple(pad(part, (0, 0, 0, more)) for part in own)
        return roomy

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        num_prompts = len(self.prefix.last_states)
        queries, keys, values = (
            self.rectangle.pad_groups(part, num_prompts) for part in (query, key, value)
        )
        mixed = attend_step(
            queries,
            self._remember(layer, keys, values),
            (self.prefix.keys[layer], self.prefix.values[layer]),
            scale,
            unwritten=None,
            padding=self.prefix.padding,
        )
        return self.rectangle.unpad_groups(mixed)

    def _remember(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Own keys and values of a layer, this step's included."""
        own_keys, own_values = self.own.get(layer, (keys[..., :0, :], values[..., :0, :]))
        if own_keys.shape[3] == self.num_steps:
            room = (0, 0, 0, max(self.num_steps, _FIRST_WIDTH))
            own_keys, own_values = pad(own_keys, room), pad(own_values, room)
            self.own[layer] = (own_keys, own_values)
        own_keys[..., self.num_steps, :] = keys[..., 0, :]
        own_values[..., self.num_steps, :] = values[..., 0, :]
        end = self.num_steps + 1
        return own_keys[..., :end, :], own_values[..., :end, :]

"""Rows of completions that grow by one token per step."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from copd.policy.backbone import Backbone
from copd.policy.readers.prefix import SharedPrefix
from copd.policy.readers.rectangle import Rectangle
from copd.policy.sampling.decode_graph import DecodeStep, Keys, Replay

_FIRST_WIDTH = {"growing": 32, "static": 256}
"""Tokens per row that fit into new storage, which doubles whenever it is full. A GPU then captures
its graph again."""


class Decoding:
    """Rows of completions, each of which attends to its prompt's keys and to its own.

    Rows stand in slots: every prompt has as many as the largest group has rows. Own keys are
    written in place, for sampling without gradients. With `is_static` a step can be replayed as a
    CUDA graph until the storage is full.
    """

    def __init__(
        self,
        backbone: Backbone,
        prefix: SharedPrefix,
        prompt_of_row: Int[Tensor, "R"],
        *,
        is_static: bool,
    ) -> None:
        self.backbone = backbone
        self.prefix = prefix
        self.prompt_of_row = prompt_of_row
        self.is_static = is_static
        self.num_steps = 0
        num_prompts = len(prefix.last_states)
        self.rectangle = Rectangle.of_groups(prompt_of_row, num_prompts, backbone.device)
        self.prompt: Keys = {
            layer: (as_computed(keys), as_computed(prefix.values[layer]))
            for layer, keys in prefix.keys.items()
        }
        self.own: Keys = {}
        for layer, (keys, _) in self.prompt.items():
            group_size = self.rectangle.num_sequences // num_prompts
            empty = keys.new_zeros((num_prompts, keys.shape[1], group_size, 0, keys.shape[3]))
            self.own[layer] = (empty, empty)
        self._step: tuple[DecodeStep, Callable[[], Tensor]] | None = None

    @property
    def width(self) -> int:
        """Tokens per row that fit into the storage."""
        return next(iter(self.own.values()))[0].shape[3]

    def step(self, token_ids: Int[Tensor, "R"]) -> Float[Tensor, "R D"]:
        """Return the states after one more token; static ones last until the next step."""
        if self._step is None or self.width == self.num_steps:
            self._step = self._prepare_step()
        step, run = self._step
        step.token_ids.copy_(token_ids)
        self.num_steps += 1
        return run()

    def select(self, rows: Int[Tensor, "K"]) -> "Decoding":
        """Drop the other rows, and the prompts that have no row left."""
        prompts, prompt_of_row = self.prompt_of_row[rows].unique(return_inverse=True)
        every = len(prompts) == len(self.prefix.last_states)
        prefix = self.prefix if every else self.prefix.select(prompts)
        selected = Decoding(self.backbone, prefix, prompt_of_row, is_static=self.is_static)
        slots = self.rectangle.slots_in(selected.rectangle, rows)
        for layer, own in self.own.items():
            group = own[0].shape[2]
            filled = (tensor[slots // group, :, slots % group] for tensor in own)  # S Hk W d
            keys, values = (
                tensor.unflatten(0, (len(prompts), -1)).transpose(1, 2) for tensor in filled
            )
            selected.own[layer] = (keys.contiguous(), values.contiguous())
        selected.num_steps = self.num_steps
        return selected

    def _prepare_step(self) -> tuple[DecodeStep, Callable[[], Tensor]]:
        """Double full storage, and build the step that writes to it."""
        if self.width == self.num_steps:
            first = _FIRST_WIDTH["static" if self.is_static else "growing"]
            more = (0, 0, 0, max(self.width, first))
            self.own = {
                layer: (pad(keys, more), pad(values, more))
                for layer, (keys, values) in self.own.items()
            }
        positions = self.prefix.next_positions[self.prompt_of_row] + self.num_steps
        step = DecodeStep(
            self.backbone,
            self.rectangle,
            self.prompt,
            self.prefix.padding,
            self.own,
            token_ids=torch.zeros_like(self.prompt_of_row),
            positions=positions,
            column=torch.full((1,), self.num_steps, device=positions.device),
            num_steps=self.num_steps,
            is_static=self.is_static,
        )
        is_replayed = self.is_static and self.backbone.device.type == "cuda"
        return step, Replay(step) if is_replayed else step


def as_computed(tensor: Tensor) -> Tensor:
    """Cast a tensor to the type of the passes, once instead of at every step."""
    device = tensor.device.type
    enabled = torch.is_autocast_enabled(device)
    return tensor.to(torch.get_autocast_dtype(device)) if enabled else tensor

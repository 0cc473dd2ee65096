"""Groups through a model without repeating a prompt: prompts as one row, completions as another.

    prompts       a a a a | b b
                  |         |        keys and values kept per layer, with their graph
    completions   x x | y | z z z    x, y continue a; z continues b

Neither row has padding. Every completion token attends to its own prompt's keys and to the earlier
tokens of its own completion; its positions go on from the prompt's. The first token of a completion
is predicted by the prompt's last state, token t by the state of token t - 1, so the last token is
never run. The backward pass of the second row flows through the kept keys and values into the first
and on into the vision tower: prompt and pixels go through the model once per group.

Knows no sampling, no losses and no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from copd.policy.backbone import Backbone
from copd.policy.readers.attention import Rectangle, RowAttention
from copd.policy.readers.flex import FlexAttention
from copd.policy.readers.group_attention import attend_shared
from copd.policy.readers.tiles import Tile, build_tiles
from copd.policy.rendering.render import Prompt


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """P prompts a model has read: what completions attend to and continue from."""

    keys: dict[int, Float[Tensor, "P Hk L d"]]
    """By layer, right-padded."""
    values: dict[int, Float[Tensor, "P Hk L d"]]
    padding: Bool[Tensor, "P L"] | None
    """None when all prompts are equally long."""
    last_states: Float[Tensor, "P D"]
    """What predicts each first token."""
    next_positions: Int[Tensor, "P"]

    @classmethod
    def join(cls, prefixes: Sequence["SharedPrefix"]) -> "SharedPrefix":
        """Several as one, padded to the longest prompt of all."""
        if len(prefixes) == 1:
            return prefixes[0]
        width = max(prefix.is_padding.shape[1] for prefix in prefixes)
        wide = [prefix.widened(width) for prefix in prefixes]
        return cls(
            {layer: torch.cat([prefix.keys[layer] for prefix in wide]) for layer in wide[0].keys},
            {layer: torch.cat([prefix.values[layer] for prefix in wide]) for layer in wide[0].keys},
            None
            if all(prefix.padding is None for prefix in wide)
            else torch.cat([prefix.is_padding for prefix in wide]),
            torch.cat([prefix.last_states for prefix in prefixes]),
            torch.cat([prefix.next_positions for prefix in prefixes]),
        )

    def widened(self, width: int) -> "SharedPrefix":
        """The same with room for prompts of `width` tokens, all of it padding."""
        room = width - self.is_padding.shape[1]
        if room == 0:
            return self
        return SharedPrefix(
            {layer: pad(keys, (0, 0, 0, room)) for layer, keys in self.keys.items()},
            {layer: pad(values, (0, 0, 0, room)) for layer, values in self.values.items()},
            pad(self.is_padding, (0, room), value=True),
            self.last_states,
            self.next_positions,
        )

    @property
    def is_padding(self) -> Bool[Tensor, "P L"]:
        """`padding`, or that there is none."""
        if self.padding is not None:
            return self.padding
        num_prompts, _, width, _ = next(iter(self.keys.values())).shape
        return torch.zeros(num_prompts, width, dtype=torch.bool, device=self.last_states.device)

    def cut(self) -> "SharedPrefix":
        """The same without its graph, as leaves that collect the gradient of several passes."""

        def leaves(parts: dict[int, Tensor]) -> dict[int, Tensor]:
            return {layer: part.detach().requires_grad_() for layer, part in parts.items()}

        return SharedPrefix(
            leaves(self.keys),
            leaves(self.values),
            self.padding,
            self.last_states.detach().requires_grad_(),
            self.next_positions,
        )

    def backward(self, leaves: "SharedPrefix") -> None:
        """Carries what `leaves`, cut from this one, have collected on into the model."""
        pairs = [
            (part, leaf.grad)
            for part, leaf in zip(self._tensors(), leaves._tensors(), strict=True)
            if part.requires_grad and leaf.grad is not None
        ]
        torch.autograd.backward([part for part, _ in pairs], [grad for _, grad in pairs])

    def _tensors(self) -> list[Tensor]:
        return [*self.keys.values(), *self.values.values(), self.last_states]

    def select(self, prompts: Int[Tensor, "Q"] | slice) -> "SharedPrefix":
        """The same for some of the prompts."""
        return SharedPrefix(
            {layer: keys[prompts] for layer, keys in self.keys.items()},
            {layer: values[prompts] for layer, values in self.values.items()},
            None if self.padding is None else self.padding[prompts],
            self.last_states[prompts],
            self.next_positions[prompts],
        )


@dataclass(frozen=True, eq=False)
class PackedStates:
    """What predicts each completion token, flat: prompt by prompt, completion by completion."""

    hidden: Float[Tensor, "N D"]
    token_ids: Int[Tensor, "N"]
    lengths: Int[Tensor, "B"]
    """Tokens of each completion; they add up to N."""


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """Causal within each prompt; keeps what it was given."""

    rectangle: Rectangle
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        queries, keys, values = (self.rectangle.pad(part) for part in (query, key, value))
        self.keys[layer], self.values[layer] = keys, values
        repeats = queries.shape[1] // keys.shape[1]
        mixed = torch.nn.functional.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(repeats, dim=1),
            values.repeat_interleave(repeats, dim=1),
            is_causal=True,
            scale=scale,
        )
        return self.rectangle.unpad(mixed)


@dataclass(frozen=True, eq=False)
class CompletionAttention:
    """Each completion to its prompt and, causally, to itself."""

    prefix: SharedPrefix
    parts: list[Tile]

    @classmethod
    def build(
        cls, prefix: SharedPrefix, lengths: Sequence[Sequence[int]], num_heads: int
    ) -> "CompletionAttention":
        """For completions of which so many tokens are run, in a model with so many query heads."""
        _, num_key_heads, width, _ = next(iter(prefix.keys.values())).shape
        heads, device = (num_key_heads, num_heads // num_key_heads), prefix.last_states.device
        return cls(prefix, build_tiles(lengths, width, heads, device))

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
        mixed = attend_shared(
            queries,
            (keys, values),
            (self.prefix.keys[layer], self.prefix.values[layer]),
            scale,
            parts=self.parts,
            padding=self.prefix.padding,
        )
        return mixed[None]


def read_prompts(backbone: Backbone, prompts: Sequence[Prompt]) -> SharedPrefix:
    """All prompts, and all their pixels, in one pass."""
    device = backbone.device
    lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts])
    positions = [backbone.positions(prompt) for prompt in prompts]
    attention = PromptAttention(Rectangle.build(lengths.tolist(), device))
    states = backbone.forward(
        torch.cat([prompt.input_ids for prompt in prompts]),
        torch.cat(positions, dim=1),
        attention,
        backbone.features(prompts),
    )
    is_padding = torch.arange(int(lengths.max())) >= lengths[:, None]
    next_positions = torch.stack([position[:, -1].max() + 1 for position in positions])
    return SharedPrefix(
        attention.keys,
        attention.values,
        is_padding.to(device) if is_padding.any() else None,
        states[(lengths.cumsum(0) - 1).to(device)],
        next_positions.to(device),
    )


def read_completions(
    backbone: Backbone,
    prefix: SharedPrefix,
    completions: Sequence[Sequence[NDArray[np.int32]]],
) -> PackedStates:
    """All completions of all prompts in one pass; `completions[p]` are those of prompt p."""
    device = backbone.device
    lengths = np.array([len(ids) for group in completions for ids in group])  # B
    prompts = np.repeat(np.arange(len(completions)), [len(group) for group in completions])  # B
    token_ids = np.concatenate([ids for group in completions for ids in group]).astype(np.int64)
    prompt_of = prompts.repeat(lengths)  # N
    steps = np.concatenate([np.arange(length) for length in lengths])
    is_run = steps < lengths.repeat(lengths) - 1  # all but the last

    def put(values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    states = prefix.last_states
    if is_run.any():
        completion_of = np.arange(len(lengths)).repeat(lengths)
        run_lengths = [[len(ids) - 1 for ids in group] for group in completions]
        runs = put(prompt_of[is_run]), put(completion_of[is_run])
        attention: RowAttention = (
            FlexAttention.build(prefix.keys, prefix.values, prefix.padding, *runs)
            if device.type == "cuda"  # elsewhere it has no backward pass
            else CompletionAttention.build(prefix, run_lengths, backbone.num_heads)
        )
        positions = prefix.next_positions[runs[0]] + put(steps[is_run])
        axes = backbone.on_axes(positions)
        own = backbone.forward(put(token_ids[is_run]), axes, attention)
        states = torch.cat([states, own])
    predecessor = len(prefix.last_states) + np.roll(is_run.cumsum() - 1, 1)
    predictor = put(np.where(steps == 0, prompt_of, predecessor))
    return PackedStates(states.index_select(0, predictor), put(token_ids), put(lengths))


@torch.no_grad()
def check_exact(backbone: Backbone, token_ids: Int[Tensor, "tokens"]) -> None:
    """Refuse a model whose own forward pass does not give `hidden @ head.T` for a few tokens.

    It would have a scale or a cap on its logits, positions of another kind, or layers that keep a
    state: nothing that could be seen in the numbers later on.
    """
    tokens = token_ids[torch.arange(9) % len(token_ids)].cpu()
    pieces = {(0, 3): [(3, 6), (6, 7)], (4, 6): [(1, 5)]}  # prompts and their completions
    prompts = [Prompt(tokens[slice(*prompt)]) for prompt in pieces]
    completions = [
        [tokens[slice(*piece)].numpy().astype(np.int32) for piece in group]
        for group in pieces.values()
    ]
    states = read_completions(backbone, read_prompts(backbone, prompts), completions)
    packed = (states.hidden @ backbone.head.T).float()
    plain = []
    for prompt, group in zip(prompts, completions, strict=True):
        for ids in group:
            row = torch.cat([prompt.input_ids, torch.from_numpy(ids)]).to(backbone.device)
            plain.append(backbone.model(input_ids=row[None]).logits[0, -len(ids) - 1 : -1].float())
    expected = torch.cat(plain)
    tolerance = 1e-3 if states.hidden.dtype == torch.float32 else 0.1
    if not (packed - expected).norm() <= tolerance * expected.norm():
        raise ValueError(
            f"packed passes do not reproduce {type(backbone.model).__name__}: its own logits "
            f"differ by {(packed - expected).abs().max():.2g}, expected plain attention and logits "
            "that are states times the vocabulary head. Choose a model like Qwen3 or Llama."
        )

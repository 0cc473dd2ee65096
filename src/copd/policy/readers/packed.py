"""Groups of completions through a model without repeating a prompt: two unpadded rows.

    prompts       a a a a | b b
                  |         |        keys and values of each layer, with their graph
    completions   x x | y | z z z    x, y continue a; z continues b

Every completion token attends to the keys of its prompt and to the earlier tokens of its
completion; its positions continue those of the prompt. The first token of a completion is predicted
by the prompt's last state, token t by the state of token t - 1, so the last token is never run. The
backward pass goes from the second row through the keys and values into the first and the vision
tower: each prompt and its pixels go through the model once per group.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from copd.policy.attention import RowAttention
from copd.policy.backbone import Backbone
from copd.policy.readers.flex import FlexAttention
from copd.policy.readers.group_attention import attend_shared
from copd.policy.readers.prefix import PackedStates, SharedPrefix
from copd.policy.readers.rectangle import Rectangle
from copd.policy.readers.tiles import Tile, build_tiles
from copd.policy.rendering.render import Prompt


@dataclass(frozen=True, eq=False)
class PromptAttention:
    """Causal attention within each prompt, which stores the keys and values of every layer."""

    rectangle: Rectangle
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        queries, keys, values = (self.rectangle.pad(row) for row in (query, key, value))
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
    """Attention of each completion to its prompt and, causally, to itself."""

    prefix: SharedPrefix
    tiles: list[Tile]

    @classmethod
    def build(
        cls, prefix: SharedPrefix, lengths: Sequence[Sequence[int]], num_heads: int
    ) -> "CompletionAttention":
        """Build it for a row in which each completion has `lengths` tokens."""
        _, num_key_heads, width, _ = next(iter(prefix.keys.values())).shape
        heads, device = (num_key_heads, num_heads // num_key_heads), prefix.last_states.device
        return cls(prefix, build_tiles(lengths, width, heads, device))

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        queries, keys, values = (row[0].transpose(0, 1) for row in (query, key, value))
        mixed = attend_shared(
            queries,
            (keys, values),
            (self.prefix.keys[layer], self.prefix.values[layer]),
            scale,
            tiles=self.tiles,
            padding=self.prefix.padding,
        )
        return mixed[None]


def read_prompts(backbone: Backbone, prompts: Sequence[Prompt]) -> SharedPrefix:
    """Run all prompts, and all their pixels, in one pass."""
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
    # from the end: the times of a long video of Qwen2.5-VL are larger than the text's positions
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
    token_ids: NDArray[np.int32],
    lengths: NDArray[np.int32],
    group_sizes: Sequence[int] | None = None,
) -> PackedStates:
    """Run all completions in one pass; see `Policy.score`."""
    num_prompts, num_completions = len(prefix.last_states), len(lengths)
    if group_sizes is None:
        group_sizes = [num_completions // num_prompts] * num_prompts
    if len(group_sizes) != num_prompts or sum(group_sizes) != num_completions:
        raise ValueError(
            f"every prompt needs its completions: got {num_prompts} prompts, {num_completions} "
            f"completions and groups of {list(group_sizes)}. Pass one group per prompt."
        )
    if min(lengths, default=0) == 0:
        raise ValueError(
            "scoring needs at least one completion and no empty ones: got completions of "
            f"{list(map(int, lengths))} tokens. Leave out prompts and completions without tokens."
        )
    device = backbone.device
    prompt_of = np.repeat(np.arange(num_prompts), group_sizes).repeat(lengths)  # N
    steps = np.concatenate([np.arange(length) for length in lengths])
    is_run = steps < lengths.repeat(lengths) - 1  # all but the last

    def put(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.int64)).to(device, non_blocking=True)

    states = prefix.last_states
    if is_run.any():
        completion_of = np.arange(len(lengths)).repeat(lengths)
        run_lengths = np.split(lengths - 1, np.cumsum(group_sizes)[:-1])
        runs = put(prompt_of[is_run]), put(completion_of[is_run])
        attention: RowAttention = (
            FlexAttention.build(prefix.keys, prefix.values, prefix.padding, *runs)
            if device.type == "cuda"  # elsewhere it has no backward pass
            else CompletionAttention.build(
                prefix, [group.tolist() for group in run_lengths], backbone.num_heads
            )
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
    """Check that a model's own forward pass gives `hidden @ head.T` for a few tokens.

    Scaled or capped logits, other kinds of positions and recurrent layers would be wrong silently.
    """
    tokens = token_ids[torch.arange(9) % len(token_ids)].cpu()
    prompts = [Prompt(tokens[:3]), Prompt(tokens[4:6])]
    completions = [tokens[3:6], tokens[6:7], tokens[1:5]]  # two of the first, one of the second
    states = read_completions(
        backbone,
        read_prompts(backbone, prompts),
        torch.cat(completions).numpy().astype(np.int32),
        np.array([len(ids) for ids in completions], np.int32),
        [2, 1],
    )
    packed = (states.hidden @ backbone.head.T).float()
    plain = []
    for prompt, ids in zip([prompts[0], *prompts], completions, strict=True):
        row = torch.cat([prompt.input_ids, ids]).to(backbone.device)
        plain.append(backbone.model(input_ids=row[None]).logits[0, -len(ids) - 1 : -1].float())
    expected = torch.cat(plain)
    tolerance = 1e-3 if states.hidden.dtype == torch.float32 else 0.1
    if not (packed - expected).norm() <= tolerance * expected.norm():
        raise ValueError(
            f"packed passes do not reproduce {type(backbone.model).__name__}: its own logits "
            f"differ by {(packed - expected).abs().max():.2g}, expected plain attention and logits "
            "that are states times the vocabulary head. Choose a model like Qwen3 or Llama."
        )

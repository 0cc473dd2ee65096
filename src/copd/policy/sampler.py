"""Completions from a model, group by group, each prompt read once. Knows no text and no rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from copd.functional.logprobs import full_logprobs
from copd.policy.attention import Rectangle
from copd.policy.backbone import Backbone
from copd.policy.group_attention import attend_shared
from copd.policy.packing import SharedPrefix

_FIRST_WIDTH = 32
"""How many tokens a fresh key buffer has room for; it doubles whenever it is full."""


@dataclass(frozen=True, eq=False)
class Draw:
    """One batch to sample: G completions after each of P prompts, with its own randomness."""

    prefix: SharedPrefix
    group_size: int
    temperature: float
    """0 takes the most probable token, its log-probability at temperature 1; then every draw of a
    loop must."""
    generator: torch.Generator
    first_prompt: int = 0
    num_prompts: int | None = None
    """Where these prompts stand in a batch that is sampled in pieces, and how many that has: a
    piece draws the numbers of the whole batch, so the cut changes no token."""

    @property
    def num_rows(self) -> int:
        return len(self.prefix.last_states) * self.group_size

    def noise(self) -> Float[Tensor, "B"]:
        """One number in [0, 1) per row, in float64."""
        first = self.first_prompt * self.group_size
        num_rows = self.num_rows if self.num_prompts is None else self.num_prompts * self.group_size
        device = self.generator.device
        numbers = torch.rand(num_rows, generator=self.generator, dtype=torch.float64, device=device)
        return numbers[first : first + self.num_rows]


@dataclass(frozen=True, eq=False)
class Samples:
    """What was drawn for B = P * G rows, right-padded with whatever was drawn after the end."""

    token_ids: NDArray[np.int32]
    """Shape `B T`."""
    logprobs: NDArray[np.float32]
    """Shape `B T`."""
    lengths: NDArray[np.int64]
    """Shape `B`, the end token included."""

    def split(self, num_rows: Sequence[int]) -> list["Samples"]:
        """The same in runs of rows."""
        ends = np.cumsum(num_rows)[:-1]
        parts = (np.split(part, ends) for part in (self.token_ids, self.logprobs, self.lengths))
        return [Samples(*part) for part in zip(*parts, strict=True)]


class Decoding:
    """Rows being written one token at a time; each attends to its prompt's keys and its own.

    Rows stand in slots, as many for every prompt as the largest group still has; when rows are
    dropped some slots stay empty. Own keys are written in place: for sampling, not for gradients.
    """

    def __init__(
        self, backbone: Backbone, prefix: SharedPrefix, prompt_of_row: Int[Tensor, "R"]
    ) -> None:
        self.backbone = backbone
        self.prefix = prefix
        self.prompt_of_row = prompt_of_row
        counts = prompt_of_row.bincount(minlength=len(prefix.last_states)).tolist()
        group_size = max(counts)
        slots = [int(rank < count) for count in counts for rank in range(group_size)]
        self.rectangle = Rectangle.build(slots, backbone.device)
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.num_steps = 0

    def step(self, token_ids: Int[Tensor, "R"]) -> Float[Tensor, "R D"]:
        """The states after one more token in every row."""
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
        kept = Decoding(self.backbone, prefix, prompt_of_row)
        old = rows if self.rectangle.cell_of_token is None else self.rectangle.cell_of_token[rows]
        new = kept.rectangle.token_of_cell
        slots = old if new is None else old[new]
        for layer, own in self.own.items():
            group = own[0].shape[2]
            chosen = (part[slots // group, :, slots % group] for part in own)  # S Hk W d
            keys, values = (
                part.unflatten(0, (len(prompts), -1)).transpose(1, 2) for part in chosen
            )
            kept.own[layer] = (keys.contiguous(), values.contiguous())
        kept.num_steps = self.num_steps
        return kept

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float
    ) -> Tensor:
        num_prompts = len(self.prefix.last_states)
        queries, keys, values = (
            self.rectangle.pad_groups(part, num_prompts) for part in (query, key, value)
        )
        mixed = attend_shared(
            queries,
            self._remember(layer, keys, values),
            (self.prefix.keys[layer], self.prefix.values[layer]),
            scale,
            future=None,
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


@torch.no_grad()
def sample_tokens(
    backbone: Backbone,
    draws: Sequence[Draw],
    *,
    max_tokens: int,
    banned: Bool[Tensor, "V"],
    ends: frozenset[int],
    drop_below: float = 0.8,
) -> list[Samples]:
    """Completions for every prompt of every draw, all written side by side in one loop.

    Every step draws one number for every row, finished or not, so that no row depends on how long
    the others are. Finished rows leave the batch once the share of live ones is under `drop_below`.
    """
    device = backbone.device
    prefix = SharedPrefix.join([draw.prefix for draw in draws])
    group_sizes = [draw.group_size for draw in draws for _ in draw.prefix.last_states]
    prompts = torch.arange(len(group_sizes))
    prompt_of_row = prompts.repeat_interleave(torch.tensor(group_sizes)).to(device)
    choice = _Choice.build(draws, device)
    decoding = Decoding(backbone, prefix, prompt_of_row)
    states = prefix.last_states[prompt_of_row]
    num_rows = len(prompt_of_row)
    token_ids = torch.zeros(num_rows, max_tokens, dtype=torch.int64, device=device)
    logprobs = torch.zeros(num_rows, max_tokens, device=device)
    lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
    is_live = torch.ones(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # those still in the batch
    end_tokens = torch.tensor(sorted(ends), device=device)
    for step in range(max_tokens):
        scores = full_logprobs(states, backbone.head, banned=banned)
        tokens, chosen = choice.next_tokens(scores, rows)
        token_ids[rows, step], logprobs[rows, step] = tokens, chosen
        lengths += is_live
        is_live[rows] &= ~torch.isin(tokens, end_tokens)
        if step + 1 == max_tokens or not is_live.any():
            break
        kept = is_live[rows].nonzero()[:, 0]
        if len(kept) < drop_below * len(rows):
            decoding, rows, tokens = decoding.keep(kept), rows[kept], tokens[kept]
        states = decoding.step(tokens)
    samples = Samples(
        token_ids.to(torch.int32).numpy(force=True),
        logprobs.numpy(force=True),
        lengths.numpy(force=True),
    )
    return samples.split([draw.num_rows for draw in draws])


def draw_tokens(logprobs: Float[Tensor, "R V"], noise: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """The token at which the cumulative probability passes `noise`, uniform in [0, 1).

    A token of probability zero adds nothing to the sum and so is never the one that passes it.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    target = noise[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


@dataclass(frozen=True, eq=False)
class _Choice:
    """How the next tokens are chosen."""

    draws: Sequence[Draw]
    temperature: Float[Tensor, "B 1"] | None
    """None when every row is sampled at 1 or takes the most probable token."""

    @classmethod
    def build(cls, draws: Sequence[Draw], device: torch.device) -> "_Choice":
        of_row = [draw.temperature for draw in draws for _ in range(draw.num_rows)]
        plain = all(draw.temperature in (0.0, 1.0) for draw in draws)
        return cls(draws, None if plain else torch.tensor(of_row, device=device)[:, None])

    def next_tokens(
        self, logprobs: Float[Tensor, "R V"], rows: Int[Tensor, "R"]
    ) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"]]:
        """A token for each of the rows still written, and its log-probability."""
        best = logprobs.max(dim=-1)
        if not best.values.isfinite().all():
            raise FloatingPointError(
                "sampling needs finite logits: got nan or infinity from the model. "
                "Go back to weights from before they diverged."
            )
        if self.draws[0].temperature == 0:
            return best.indices, best.values
        if self.temperature is not None:
            logprobs = (logprobs / self.temperature[rows]).log_softmax(dim=-1)
        noise = torch.cat([draw.noise() for draw in self.draws]).to(logprobs.device)
        tokens = draw_tokens(logprobs, noise[rows])
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

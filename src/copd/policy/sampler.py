"""Completions from a model, group by group, each prompt read once. Knows no text and no rewards."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from copd.functional.logprobs import full_logprobs
from copd.policy.backbone import Backbone
from copd.policy.decode_graph import as_computed
from copd.policy.decoding import Decoding
from copd.policy.packing import SharedPrefix
from copd.policy.written_decoding import WrittenDecoding


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


@dataclass(frozen=True)
class Pace:
    """When the host looks at what was drawn, and what it does then.

    A look at its tensors makes a GPU wait, and rows that leave cost it the capture of a graph.
    """

    look_every: int
    """Steps; until the next look, rows that have ended go on unheard."""
    drop_below: float
    """Finished rows leave the batch once the share of live ones is under this."""
    is_static: bool
    """Of `Decoding`."""
    most_scores: int = 2**20
    """Rows times vocabulary that are looked at together: what fits a CPU's cache is not written to
    memory and read again, which for 50,000 words costs more than the scores themselves."""

    @classmethod
    def on(cls, device: torch.device) -> "Pace":
        """What suits a device."""
        return cls(16, 0.5, True, 2**30) if device.type == "cuda" else cls(1, 0.8, False)


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


@torch.inference_mode()
def sample_tokens(
    backbone: Backbone,
    draws: Sequence[Draw],
    *,
    max_tokens: int,
    banned: Bool[Tensor, "V"],
    ends: frozenset[int],
    pace: Pace | None = None,
) -> list[Samples]:
    """Completions for every prompt of every draw, all written side by side in one loop.

    Every step draws one number for every row, finished or not, so that no row depends on how long
    the others are, and no token on the pace.
    """
    device = backbone.device
    pace = Pace.on(device) if pace is None else pace
    prefix = SharedPrefix.join([draw.prefix for draw in draws])
    group_sizes = [draw.group_size for draw in draws for _ in draw.prefix.last_states]
    prompts = torch.arange(len(group_sizes))
    prompt_of_row = prompts.repeat_interleave(torch.tensor(group_sizes)).to(device)
    choice = _Choice.build(draws, device)
    layers = None if pace.is_static else backbone.written_out()
    if layers is None:
        decoding = Decoding(backbone, prefix, prompt_of_row, is_static=pace.is_static)
    else:
        decoding = WrittenDecoding.begin(layers, prefix, prompt_of_row, backbone.on_axes)
    head = as_computed(backbone.head)
    at_once = max(1, pace.most_scores // len(head))
    states = prefix.last_states[prompt_of_row]
    num_rows = len(prompt_of_row)
    token_ids = torch.zeros(num_rows, max_tokens, dtype=torch.int64, device=device)
    logprobs = torch.zeros(num_rows, max_tokens, device=device)
    lengths = torch.zeros(num_rows, dtype=torch.int64, device=device)
    is_live = torch.ones(num_rows, dtype=torch.bool, device=device)
    rows = torch.arange(num_rows, device=device)  # those still in the batch
    end_tokens = torch.tensor(sorted(ends), device=device)
    for step in range(max_tokens):
        noise = choice.noise(device)
        drawn = [
            choice.next_tokens(full_logprobs(some, head, banned=banned), of, noise)
            for some, of in zip(states.split(at_once), rows.split(at_once), strict=True)
        ]
        tokens, chosen = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        token_ids[rows, step], logprobs[rows, step] = tokens, chosen
        lengths += is_live
        is_live[rows] &= (tokens[:, None] != end_tokens).all(dim=1)
        is_last = step + 1 == max_tokens
        if is_last or (step + 1) % pace.look_every == 0:
            choice.check_finite()
            kept = is_live[rows].nonzero()[:, 0]
            if is_last or len(kept) == 0:
                break
            if len(kept) < pace.drop_below * len(rows):
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
    What nan gives is a token, too: divergence is noticed only at the next look.
    """
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    target = noise[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return found.clamp(max=logprobs.shape[1] - 1)


@dataclass(frozen=True, eq=False)
class _Choice:
    """How the next tokens are chosen."""

    draws: Sequence[Draw]
    temperature: Float[Tensor, "B 1"] | None
    """None when every row is sampled at 1 or takes the most probable token."""
    is_finite: Bool[Tensor, ""]
    """Whether all log-probabilities so far were."""

    @classmethod
    def build(cls, draws: Sequence[Draw], device: torch.device) -> "_Choice":
        of_row = [draw.temperature for draw in draws for _ in range(draw.num_rows)]
        plain = all(draw.temperature in (0.0, 1.0) for draw in draws)
        temperature = None if plain else torch.tensor(of_row, device=device)[:, None]
        return cls(draws, temperature, torch.ones((), dtype=torch.bool, device=device))

    def check_finite(self) -> None:
        """Refuse to go on from weights that have diverged."""
        if not self.is_finite:
            raise FloatingPointError(
                "sampling needs finite logits: got nan or infinity from the model. "
                "Go back to weights from before they diverged."
            )

    def noise(self, device: torch.device) -> Float[Tensor, "B"]:
        """A number for every row, finished or not; none where nothing is left to chance."""
        if self.draws[0].temperature == 0:
            return torch.empty(0, device=device)
        return torch.cat([draw.noise() for draw in self.draws]).to(device)

    def next_tokens(
        self,
        logprobs: Float[Tensor, "R V"],
        rows: Int[Tensor, "R"],
        noise: Float[Tensor, "B"],
    ) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"]]:
        """A token for each of these rows, and its log-probability."""
        best = logprobs.max(dim=-1)
        self.is_finite.logical_and_(best.values.isfinite().all())
        if self.draws[0].temperature == 0:
            return best.indices, best.values
        if self.temperature is not None:
            logprobs = (logprobs / self.temperature[rows]).log_softmax(dim=-1)
        tokens = draw_tokens(logprobs, noise[rows])
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

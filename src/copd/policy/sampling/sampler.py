"""Completions from a model, group by group, each prompt read once. Knows no text and no rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from copd.functional.logprobs import full_logprobs
from copd.policy.backbone import Backbone
from copd.policy.readers.packed import SharedPrefix
from copd.policy.sampling.decode_graph import as_computed
from copd.policy.sampling.decoding import Decoding


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
    decoding = Decoding(backbone, prefix, prompt_of_row, is_static=pace.is_static)
    choice = _Choice.build(draws, as_computed(backbone.head), banned, pace.most_scores)
    seen = _Seen.nothing(len(prompt_of_row), max_tokens, ends)
    unseen: list[tuple[Tensor, Tensor]] = []
    states = prefix.last_states[prompt_of_row]
    for step in range(max_tokens):
        tokens, chosen = choice.next_tokens(states)
        unseen.append((tokens, chosen))
        is_last = step + 1 == max_tokens
        if is_last or len(unseen) == pace.look_every:
            live = seen.look(unseen)
            unseen.clear()
            if is_last or len(live) == 0:
                break
            if len(live) < pace.drop_below * len(tokens):
                kept = seen.keep(live).to(device)
                decoding, choice, tokens = decoding.keep(kept), choice.keep(kept), tokens[kept]
        states = decoding.step(tokens)
    samples = Samples(seen.token_ids, seen.logprobs, seen.lengths)
    return samples.split([draw.num_rows for draw in draws])


def draw_tokens(logprobs: Float[Tensor, "R V"], noise: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """The token at which the cumulative probability passes `noise`, uniform in [0, 1).

    A token of probability zero adds nothing to the sum and so is never the one that passes it.
    What nan gives is a token, too: divergence is noticed only at the next look.
    """
    cumulative = logprobs.exp().double().cumsum_(dim=-1)
    target = noise[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return found.clamp_(max=logprobs.shape[1] - 1)


@dataclass(frozen=True, eq=False)
class _Choice:
    """How the next tokens of the rows still in the batch are chosen."""

    draws: Sequence[Draw]
    head: Float[Tensor, "V D"]
    banned: Bool[Tensor, "V"]
    at_once: int
    """Rows that are looked at together."""
    rows: Int[Tensor, "R"]
    temperature: Float[Tensor, "R 1"] | None
    """None when every row is sampled at 1 or takes the most probable token."""

    @classmethod
    def build(
        cls, draws: Sequence[Draw], head: Tensor, banned: Tensor, most_scores: int
    ) -> "_Choice":
        of_row = [draw.temperature for draw in draws for _ in range(draw.num_rows)]
        plain = all(draw.temperature in (0.0, 1.0) for draw in draws)
        temperature = None if plain else torch.tensor(of_row, device=head.device)[:, None]
        rows = torch.arange(len(of_row), device=head.device)
        return cls(draws, head, banned, max(1, most_scores // len(head)), rows, temperature)

    def keep(self, rows: Int[Tensor, "K"]) -> "_Choice":
        """The same without the other rows."""
        temperature = None if self.temperature is None else self.temperature[rows]
        return replace(self, rows=self.rows[rows], temperature=temperature)

    def next_tokens(
        self, states: Float[Tensor, "R D"]
    ) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"]]:
        """A token for each row, and its log-probability."""
        noise, every = self._noise(), range(0, len(states), self.at_once)
        parts = [self._some(states, noise, slice(i, i + self.at_once)) for i in every]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([tokens for tokens, _ in parts]), torch.cat(
            [chosen for _, chosen in parts]
        )

    def _some(self, states: Tensor, noise: Tensor | None, some: slice) -> tuple[Tensor, Tensor]:
        logprobs = full_logprobs(states[some], self.head, banned=self.banned)
        if noise is None:
            best = logprobs.max(dim=-1)
            return best.indices, best.values
        if self.temperature is not None:
            logprobs = (logprobs / self.temperature[some]).log_softmax(dim=-1)
        tokens = draw_tokens(logprobs, noise[some])
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

    def _noise(self) -> Float[Tensor, "R"] | None:
        """A number for every row, drawn also for those that have left; none where nothing is left
        to chance."""
        if self.draws[0].temperature == 0:
            return None
        numbers = torch.cat([draw.noise() for draw in self.draws]).to(self.rows.device)
        return numbers if len(numbers) == len(self.rows) else numbers[self.rows]


@dataclass(eq=False)
class _Seen:
    """What was drawn up to the last look, on the host, and which rows are still in the batch."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    lengths: NDArray[np.int64]
    """The longest possible one for rows that have not ended."""
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]
    num_steps: int = 0

    @classmethod
    def nothing(cls, num_rows: int, max_tokens: int, ends: frozenset[int]) -> "_Seen":
        return cls(
            np.zeros((num_rows, max_tokens), np.int32),
            np.zeros((num_rows, max_tokens), np.float32),
            np.full(num_rows, max_tokens),
            np.array(sorted(ends), np.int64),
            np.arange(num_rows),
        )

    def look(self, unseen: Sequence[tuple[Tensor, Tensor]]) -> NDArray[np.int64]:
        """Takes down some steps, and says which rows of the batch are live after them.

        Refuses to go on from weights that have diverged: what is drawn by them has no finite
        log-probability.
        """
        tokens, chosen = (torch.stack(part).numpy(force=True) for part in zip(*unseen, strict=True))
        if not np.isfinite(chosen).all():
            raise FloatingPointError(
                "sampling needs finite logits: got nan or infinity from the model. "
                "Go back to weights from before they diverged."
            )
        first, self.num_steps = self.num_steps, self.num_steps + len(tokens)
        self.token_ids[self.rows, first : self.num_steps] = tokens.T
        self.logprobs[self.rows, first : self.num_steps] = chosen.T
        is_end = (tokens[..., None] == self.ends).any(axis=-1)
        ends_at = np.where(is_end.any(axis=0), first + is_end.argmax(axis=0) + 1, self.longest)
        lengths = np.minimum(self.lengths[self.rows], ends_at)
        self.lengths[self.rows] = lengths
        return (lengths > self.num_steps).nonzero()[0]

    def keep(self, live: NDArray[np.int64]) -> Int[Tensor, "K"]:
        """Goes on without the other rows of the batch."""
        self.rows = self.rows[live]
        return torch.from_numpy(live)

    @property
    def longest(self) -> int:
        return self.token_ids.shape[1]

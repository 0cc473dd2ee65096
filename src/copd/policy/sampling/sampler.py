"""The decode loop: sample groups of completions after prompts that have been read once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from copd.functional.logprobs import full_logprobs
from copd.policy.backbone import Backbone
from copd.policy.readers.prefix import SharedPrefix
from copd.policy.sampling.decoding import Decoding, as_computed
from copd.types import Completions


@dataclass(frozen=True, eq=False)
class Draw:
    """A batch to sample: G completions after each of P prompts, with randomness of its own."""

    prefix: SharedPrefix
    """The prompts, as read by the policy that samples."""
    group_size: int
    """G, at least 1."""
    temperature: float
    """0 takes the most probable token and reports its log-probability at temperature 1; all draws
    of one loop must then have it."""
    generator: torch.Generator
    first_prompt: int = 0
    """The place of the first prompt in the larger batch that this one is a slice of."""
    num_prompts: int | None = None
    """The number of prompts of that batch; None if this one is not a slice. A slice draws the
    random numbers of the whole batch, so slicing changes no token."""

    @property
    def num_rows(self) -> int:
        """Completions of the batch, `P G`."""
        return len(self.prefix.last_states) * self.group_size

    def noise(self) -> Float[Tensor, "B"]:
        """Draw a float64 number in [0, 1) for each row.

        Returns:
            The numbers, shape `P G`.
        """
        first = self.first_prompt * self.group_size
        num_rows = self.num_rows if self.num_prompts is None else self.num_prompts * self.group_size
        device = self.generator.device
        numbers = torch.rand(num_rows, generator=self.generator, dtype=torch.float64, device=device)
        return numbers[first : first + self.num_rows]


@dataclass(frozen=True)
class Pace:
    """When the host looks at the drawn tokens, and when it drops finished rows.

    A GPU waits whenever the host reads a tensor, and captures a graph again when rows are dropped.
    """

    look_every: int
    """Steps between looks; rows that have ended go on until the next look."""
    drop_below: float
    """Finished rows are dropped once the share of unfinished ones is below this."""
    is_static: bool
    """Whether key buffers are static, see `Decoding`."""
    most_scores: int = 2**20
    """Rows times vocabulary that are drawn from at once. The default fits a CPU's cache: for a
    vocabulary of 50,000, writing scores to memory and back costs more than computing them."""

    @classmethod
    def on(cls, device: torch.device) -> "Pace":
        """Return the pace for a device."""
        return cls(16, 0.5, True, 2**30) if device.type == "cuda" else cls(1, 0.8, False)


@dataclass(frozen=True, eq=False)
class Samples:
    """Sampled tokens, packed: one flat token axis `N`."""

    token_ids: NDArray[np.int32]
    """Shape `N`."""
    logprobs: NDArray[np.float32]
    """Shape `N`."""
    lengths: NDArray[np.int32]
    """Shape `B`, the end token included."""


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
    """Sample the completions of all draws side by side in one loop.

    Every step draws a number for each row, finished or not: no row depends on the length of others,
    and no token on the pace.
    """
    for draw in draws:
        if draw.group_size < 1 or max_tokens < 1 or draw.temperature < 0:
            raise ValueError(
                "sampling needs group_size and max_tokens of at least 1 and a temperature of "
                f"at least 0: got {draw.group_size}, {max_tokens} and {draw.temperature}. "
                "Correct the settings."
            )
    device = backbone.device
    pace = Pace.on(device) if pace is None else pace
    prefix = SharedPrefix.join([draw.prefix for draw in draws])
    group_sizes = [draw.group_size for draw in draws for _ in draw.prefix.last_states]
    prompts = torch.arange(len(group_sizes))
    prompt_of_row = prompts.repeat_interleave(torch.tensor(group_sizes)).to(device)
    decoding = Decoding(backbone, prefix, prompt_of_row, is_static=pace.is_static)
    chooser = _Chooser.build(draws, as_computed(backbone.head), banned, pace.most_scores)
    record = _Record.empty(len(prompt_of_row), max_tokens, ends)
    unseen: list[tuple[Tensor, Tensor]] = []
    states = prefix.last_states[prompt_of_row]
    for step in range(max_tokens):
        tokens, logprobs = chooser.next_tokens(states)
        unseen.append((tokens, logprobs))
        is_last = step + 1 == max_tokens
        if is_last or len(unseen) == pace.look_every:
            unfinished = record.add(unseen)
            unseen.clear()
            if is_last or len(unfinished) == 0:
                break
            if len(unfinished) < pace.drop_below * len(tokens):
                record.rows = record.rows[unfinished]
                rows = torch.from_numpy(unfinished).to(device)
                decoding, chooser = decoding.select(rows), chooser.select(rows)
                tokens = tokens[rows]
        states = decoding.step(tokens)
    ends_of_draws = np.cumsum([draw.num_rows for draw in draws])
    return [
        record.samples(slice(end - draw.num_rows, end))
        for draw, end in zip(draws, ends_of_draws, strict=True)
    ]


def to_completions(
    samples: Samples, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
) -> Completions:
    """Decode sampled tokens. Texts leave out the end token."""
    texts, is_truncated = [], []
    for token_ids in np.split(samples.token_ids, np.cumsum(samples.lengths)[:-1]):
        is_truncated.append(int(token_ids[-1]) not in ends)
        answer = token_ids if is_truncated[-1] else token_ids[:-1]
        text = tokenizer.decode(answer.tolist(), skip_special_tokens=True)
        assert isinstance(text, str)
        texts.append(text)
    return Completions(
        samples.token_ids,
        samples.lengths,
        samples.logprobs,
        np.array(is_truncated),
        tuple(texts),
    )


def draw_tokens(logprobs: Float[Tensor, "R V"], noise: Float[Tensor, "R"]) -> Int[Tensor, "R"]:
    """Return the tokens at which the cumulative probability passes `noise`, uniform in [0, 1).

    A token of probability zero adds nothing to the sum, so it never passes. Where log-probabilities
    are nan, the result is still a token: divergence is noticed at the next look.
    """
    cumulative = logprobs.exp().double().cumsum_(dim=-1)
    target = noise[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return found.clamp_(max=logprobs.shape[1] - 1)


@dataclass(frozen=True, eq=False)
class _Chooser:
    """Chooses the next tokens of the rows that are still decoded."""

    draws: Sequence[Draw]
    head: Float[Tensor, "V D"]
    banned: Bool[Tensor, "V"]
    at_once: int
    """Rows that are drawn at once."""
    rows: Int[Tensor, "R"]
    temperature: Float[Tensor, "R 1"] | None
    """None if every temperature is 0 or 1."""

    @classmethod
    def build(
        cls, draws: Sequence[Draw], head: Tensor, banned: Tensor, most_scores: int
    ) -> "_Chooser":
        by_row = [draw.temperature for draw in draws for _ in range(draw.num_rows)]
        plain = all(draw.temperature in (0.0, 1.0) for draw in draws)
        temperature = None if plain else torch.tensor(by_row, device=head.device)[:, None]
        rows = torch.arange(len(by_row), device=head.device)
        return cls(draws, head, banned, max(1, most_scores // len(head)), rows, temperature)

    def select(self, rows: Int[Tensor, "K"]) -> "_Chooser":
        temperature = None if self.temperature is None else self.temperature[rows]
        return replace(self, rows=self.rows[rows], temperature=temperature)

    def next_tokens(
        self, states: Float[Tensor, "R D"]
    ) -> tuple[Int[Tensor, "R"], Float[Tensor, "R"]]:
        """Return a token for each row, and its log-probability."""
        noise, starts = self._noise(), range(0, len(states), self.at_once)
        chosen = [self._choose(states, noise, slice(i, i + self.at_once)) for i in starts]
        if len(chosen) == 1:
            return chosen[0]
        tokens, logprobs = zip(*chosen, strict=True)
        return torch.cat(tokens), torch.cat(logprobs)

    def _choose(self, states: Tensor, noise: Tensor | None, some: slice) -> tuple[Tensor, Tensor]:
        logprobs = full_logprobs(states[some], self.head, banned=self.banned)
        if noise is None:
            best = logprobs.max(dim=-1)
            return best.indices, best.values
        if self.temperature is not None:
            logprobs = (logprobs / self.temperature[some]).log_softmax(dim=-1)
        tokens = draw_tokens(logprobs, noise[some])
        return tokens, logprobs.gather(1, tokens[:, None])[:, 0]

    def _noise(self) -> Float[Tensor, "R"] | None:
        """Draw a number for every row, dropped ones included; None at temperature 0."""
        if self.draws[0].temperature == 0:
            return None
        numbers = torch.cat([draw.noise() for draw in self.draws]).to(self.rows.device)
        return numbers if len(numbers) == len(self.rows) else numbers[self.rows]


@dataclass(eq=False)
class _Record:
    """The tokens drawn up to the last look, on the host."""

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    lengths: NDArray[np.int64]
    """The maximum for rows that have not ended."""
    ends: NDArray[np.int64]
    rows: NDArray[np.int64]
    """The rows that are still decoded."""
    num_steps: int = 0

    @classmethod
    def empty(cls, num_rows: int, max_tokens: int, ends: frozenset[int]) -> "_Record":
        return cls(
            np.zeros((num_rows, max_tokens), np.int32),
            np.zeros((num_rows, max_tokens), np.float32),
            np.full(num_rows, max_tokens),
            np.array(sorted(ends), np.int64),
            np.arange(num_rows),
        )

    def add(self, steps: Sequence[tuple[Tensor, Tensor]]) -> NDArray[np.int64]:
        """Add steps, and return which of the decoded rows are unfinished after them."""
        tokens, logprobs = (
            torch.stack(tensors).numpy(force=True) for tensors in zip(*steps, strict=True)
        )
        if not np.isfinite(logprobs).all():
            raise FloatingPointError(
                "sampling needs finite logits: got nan or infinity from the model. "
                "Go back to weights from before they diverged."
            )
        first, self.num_steps = self.num_steps, self.num_steps + len(tokens)
        self.token_ids[self.rows, first : self.num_steps] = tokens.T
        self.logprobs[self.rows, first : self.num_steps] = logprobs.T
        is_end = (tokens[..., None] == self.ends).any(axis=-1)
        max_tokens = self.token_ids.shape[1]
        ends_at = np.where(is_end.any(axis=0), first + is_end.argmax(axis=0) + 1, max_tokens)
        lengths = np.minimum(self.lengths[self.rows], ends_at)
        self.lengths[self.rows] = lengths
        return (lengths > self.num_steps).nonzero()[0]

    def samples(self, rows: slice) -> Samples:
        """Return what was drawn up to the end of some rows, packed."""
        token_ids, logprobs, lengths = self.token_ids[rows], self.logprobs[rows], self.lengths[rows]
        is_own = np.arange(token_ids.shape[1]) < lengths[:, None]
        return Samples(token_ids[is_own], logprobs[is_own], lengths.astype(np.int32))

"""The values that copd passes around: problems, completions, rollout batches and requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
"""Train on `train`, choose settings such as merge weights on `validation`, report on `test`."""

Metrics = Mapping[str, float]
"""Metric name to value, reduced to one number."""


@dataclass(frozen=True)
class Text:
    """A run of plain text inside a message."""

    text: str


@dataclass(frozen=True, eq=False)
class Image:
    """One image inside a message."""

    pixels: NDArray[np.uint8]
    """RGB, shape `H W 3`."""


@dataclass(frozen=True, eq=False)
class Video:
    """One decoded video inside a message."""

    frames: NDArray[np.uint8]
    """RGB, shape `F H W 3`."""
    fps: float
    """Frames per second of `frames`."""


ContentPart = Text | Image | Video
"""One part of a message's content."""


@dataclass(frozen=True)
class Message:
    """One chat turn, before the model's chat template renders it."""

    role: str
    content: tuple[ContentPart, ...]


@dataclass(frozen=True)
class ProblemId:
    """The name of a problem. It travels between processes instead of the problem's media."""

    domain: str
    split: Split
    index: int


@dataclass(frozen=True, eq=False)
class Problem:
    """A prompt, with the reference answer that completions are verified against."""

    id: ProblemId
    suite: str
    """The generator or benchmark that the problem belongs to. Results are reported per suite."""
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, eq=False)
class Completion:
    """Tokens sampled after a prompt."""

    token_ids: NDArray[np.int32]
    """Shape `T`, the end token included when the policy ended the completion itself."""
    logprobs: NDArray[np.float32]
    """Shape `T`, under the policy and at the temperature that sampled."""
    text: str
    """The decoded tokens without special ones; what a verifier reads."""
    is_truncated: bool
    """True when the token limit ended it."""


@dataclass(frozen=True, eq=False)
class Completions:
    """Sampled completions, packed: one flat token axis `N`, no padding, ordered by prompt."""

    token_ids: NDArray[np.int32]
    """Shape `N`."""
    lengths: NDArray[np.int32]
    """Shape `B`, tokens of each completion."""
    logprobs: NDArray[np.float32]
    """Shape `N`, under the policy and at the temperature that sampled."""
    is_truncated: NDArray[np.bool_]
    """Shape `B`."""
    texts: tuple[str, ...]
    """The B decoded completions without special tokens."""

    @classmethod
    def join(cls, parts: Sequence[Completions]) -> Completions:
        """Join completions end to end."""
        if len(parts) == 1:
            return parts[0]
        arrays = ("token_ids", "lengths", "logprobs", "is_truncated")
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in arrays),
            texts=tuple(text for part in parts for text in part.texts),
        )

    def groups(self, group_size: int) -> list[list[Completion]]:
        """Return the completions one by one, in groups of `group_size`."""
        ends = np.cumsum(self.lengths)[:-1]
        rows = zip(
            np.split(self.token_ids, ends),
            np.split(self.logprobs, ends),
            self.texts,
            self.is_truncated.tolist(),
            strict=True,
        )
        completions = [Completion(*row) for row in rows]
        return [completions[i : i + group_size] for i in range(0, len(completions), group_size)]


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """A request to a branch: sample one group of completions for each of P problems."""

    action: str
    """Key of the action that the batch is for."""
    problems: tuple[ProblemId, ...]
    temperature: float
    seed: int
    position: str
    """Stage and step in words, for error messages."""


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """The rollouts of one action in one step, packed: one flat token axis `N`, no padding.

    Rollouts are ordered by problem: `p * G + g` is completion g of problem p; `B = P * G`.
    """

    action: str
    problems: tuple[ProblemId, ...]
    prompt_lengths: NDArray[np.int32]
    """Shape `P`, prompt tokens, media included."""
    token_ids: NDArray[np.int32]
    """Shape `N`, all completions one after another."""
    lengths: NDArray[np.int32]
    """Shape `B`, tokens of each completion."""
    logprobs: NDArray[np.float32]
    """Shape `N`, under the policy and at the temperature that sampled."""
    rewards: NDArray[np.float32]
    """Shape `P G`."""
    is_truncated: NDArray[np.bool_]
    """Shape `B`."""
    texts: tuple[str, ...]
    """The B completions as the verifier read them."""
    temperature: float = 1.0
    """Temperature that the batch was sampled at and is trained at."""


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """A request to a teacher: score a student's completions. Only names and tokens travel."""

    problems: tuple[ProblemId, ...]
    token_ids: NDArray[np.int32]
    """Shape `N`."""
    lengths: NDArray[np.int32]
    """Shape `B`."""
    probes: NDArray[np.int32]
    """Shape `M`, ascending positions on `N` at which the teacher returns its top tokens."""
    top_k: int
    """Number of top tokens at each probe, K; 0 means the whole vocabulary."""


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """A teacher's scores of a student's completions, at temperature 1."""

    logprobs: NDArray[np.float32]
    """Shape `N`, log pi_teacher(y_t)."""
    probes: NDArray[np.int32]
    """Shape `M`, as requested."""
    topk_ids: NDArray[np.int32]
    """Shape `M K`, the teacher's most probable tokens, best first."""
    topk_logprobs: NDArray[np.float32]
    """Shape `M K`."""


@dataclass(frozen=True, eq=False)
class ProbeRollouts:
    """A policy's completions of P held-out problems at temperature 1, to compare others with."""

    problems: tuple[ProblemId, ...]
    token_ids: NDArray[np.int32]
    """Shape `N`, packed as in a rollout batch."""
    lengths: NDArray[np.int32]
    """Shape `B`."""
    probes: NDArray[np.int32]
    """Shape `M`, ascending positions on `N` at which distributions are compared."""
    topk_ids: NDArray[np.int32]
    """Shape `M K`, the policy's most probable tokens, best first."""
    topk_logprobs: NDArray[np.float32]
    """Shape `M K`."""
    logprobs: NDArray[np.float32]
    """Shape `M`, of the tokens at the probes."""
    entropies: NDArray[np.float32]
    """Shape `M`, over the whole vocabulary, in nats."""
    entropy: float
    """Mean entropy over all N tokens, in nats."""
    texts: tuple[str, ...]
    """The B completions as a verifier reads them."""


@dataclass(frozen=True)
class Agreement:
    """How much another policy agrees with probe rollouts: means over their probes."""

    overlap: float
    """Top-k overlap, 0 to 1."""
    symmetric_kl: float
    """In nats, not halved."""


@dataclass(frozen=True, eq=False)
class TokenDivergence:
    """Another policy at the probes of probe rollouts, token by token; each of shape `M`."""

    overlap: NDArray[np.float32]
    reverse_kl: NDArray[np.float32]
    """KL(sampling policy || other), over the sampling policy's top tokens and a tail bucket."""
    forward_kl: NDArray[np.float32]
    """KL(other || sampling policy), over the same buckets."""
    own_top_mass: NDArray[np.float32]
    """Probability that the other policy gives to the sampling policy's top `overlap_k` tokens."""
    other_top_mass: NDArray[np.float32]
    """Probability that the sampling policy gives to the other's, as far as its top tokens show."""
    logprobs: NDArray[np.float32]
    """Log-probabilities of the sampled tokens under the other policy."""
    entropies: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch of an update: OPD where a teacher scored it, RLVR on its rewards otherwise."""

    domain: str
    rollouts: RolloutBatch
    teacher: TeacherOutputs | None = None
    ref_logprobs: NDArray[np.float32] | None = None
    """Shape `N`, under theta_0; only for reward extrapolation."""
    beta: float = 1.0
    """Factor on the distillation signal."""


@dataclass(frozen=True, eq=False)
class UpdateRequest:
    """All training batches of a branch in one step; together they make one optimizer update."""

    batches: tuple[TrainingBatch, ...]
    position: str
    """Stage and step in words, for error messages."""


@dataclass(frozen=True)
class EvaluationRequest:
    """Held-out problems of one domain, each answered `num_samples` times."""

    domain: str
    split: Split
    num_problems: int
    num_samples: int
    temperature: float
    max_completion_tokens: int
    seed: int
    shard: tuple[int, int] | None = None
    """First and one past the last problem to evaluate now. Seeds do not depend on the shard."""


@dataclass(frozen=True, eq=False)
class EvaluationRollouts:
    """Rewards and lengths of an evaluation."""

    suites: tuple[str, ...]
    """The suite of each of the P problems."""
    rewards: NDArray[np.float32]
    """Shape `P S`."""
    lengths: NDArray[np.int32]
    """Shape `P S`, completion tokens."""

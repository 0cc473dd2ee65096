"""The words of copd as frozen values: problems, completions, rollouts.

Knows nothing of torch, models or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "validation", "test"]
"""`train` is learned from, `validation` chooses settings (merge weights), `test` is only ever
measured."""

Metrics = Mapping[str, float]
"""Metric name to value, already reduced to one number."""


@dataclass(frozen=True)
class Text:
    """A run of plain text inside a message."""

    text: str


@dataclass(frozen=True, eq=False)
class Image:
    """One picture inside a message."""

    pixels: NDArray[np.uint8]
    """RGB, shape `H W 3`."""


@dataclass(frozen=True, eq=False)
class Video:
    """A clip inside a message, already decoded."""

    frames: NDArray[np.uint8]
    """RGB, shape `F H W 3`."""

    fps: float
    """Frames per second of `frames`."""


ContentPart = Text | Image | Video


@dataclass(frozen=True)
class Message:
    """One chat turn, rendered later by the model's own template."""

    role: str
    content: tuple[ContentPart, ...]


@dataclass(frozen=True)
class ProblemId:
    """Names a problem so that it can be rebuilt anywhere; media never travel, this does."""

    domain: str
    split: Split
    index: int


@dataclass(frozen=True, eq=False)
class Problem:
    """What the policy is asked, and the reference answer its completions are verified against."""

    id: ProblemId
    suite: str
    """The generator or benchmark the problem belongs to; results are reported per suite."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, eq=False)
class Completion:
    """Tokens sampled after a prompt."""

    token_ids: NDArray[np.int32]
    """Shape `T`, the end token included when the policy ended by itself."""

    logprobs: NDArray[np.float32]
    """Shape `T`, under the policy and at the temperature that sampled."""
    text: str
    """The decoded tokens without special ones; what a verifier reads."""
    is_truncated: bool
    """True when the token limit ended it."""


@dataclass(frozen=True, eq=False)
class RolloutRequest:
    """One batch a branch is asked to sample: `group_size` completions for each of P problems."""

    action: str
    """Key of the action the batch is for."""

    problems: tuple[ProblemId, ...]
    temperature: float
    seed: int
    position: str
    """Stage and step in words, for error messages."""


@dataclass(frozen=True, eq=False)
class RolloutBatch:
    """The rollouts of one action in one step, packed: one flat token axis `N`, no padding.

    Rollouts are ordered problem by problem: `p * G + g` is completion g of problem p; `B = P * G`.
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
    """At which it was sampled, and is trained on."""


@dataclass(frozen=True, eq=False)
class ScoreRequest:
    """What a teacher is asked about a student's batch: names and tokens, nothing else travels."""

    problems: tuple[ProblemId, ...]
    token_ids: NDArray[np.int32]
    """Shape `N`."""

    lengths: NDArray[np.int32]
    """Shape `B`."""

    probes: NDArray[np.int32]
    """Shape `M`, ascending positions on `N` where the teacher tells its most probable tokens."""

    top_k: int
    """How many tokens it tells there, K; 0 means the whole vocabulary."""


@dataclass(frozen=True, eq=False)
class TeacherOutputs:
    """A teacher's answer, at temperature 1."""

    logprobs: NDArray[np.float32]
    """Shape `N`, log pi_teacher(y_t)."""

    probes: NDArray[np.int32]
    """Shape `M`, as asked."""

    topk_ids: NDArray[np.int32]
    """Shape `M K`, the teacher's most probable tokens, best first."""

    topk_logprobs: NDArray[np.float32]
    """Shape `M K`."""


@dataclass(frozen=True, eq=False)
class ProbeRollouts:
    """How a policy behaves on P problems at temperature 1, for others to be compared with."""

    problems: tuple[ProblemId, ...]
    token_ids: NDArray[np.int32]
    """Shape `N`, its own completions, packed as in a batch."""

    lengths: NDArray[np.int32]
    """Shape `B`."""

    probes: NDArray[np.int32]
    """Shape `M`, ascending positions on `N` where it tells its most probable tokens."""

    topk_ids: NDArray[np.int32]
    """Shape `M K`, best first."""

    topk_logprobs: NDArray[np.float32]
    """Shape `M K`."""

    logprobs: NDArray[np.float32]
    """Shape `M`, of the tokens at the probes."""

    entropies: NDArray[np.float32]
    """Shape `M`, of the whole vocabulary, in nats."""

    entropy: float
    """The same as a mean over all N tokens."""

    texts: tuple[str, ...]
    """The B completions as a verifier reads them."""


@dataclass(frozen=True)
class Agreement:
    """How like a portrait another policy is: means over the portrait's probes."""

    overlap: float
    symmetric_kl: float


@dataclass(frozen=True, eq=False)
class TokenDivergence:
    """Another policy at a portrait's probes, token by token; each of shape `M`."""

    overlap: NDArray[np.float32]
    reverse_kl: NDArray[np.float32]
    """KL(portrait || other), over the portrait's top tokens and a tail bucket."""
    forward_kl: NDArray[np.float32]
    """KL(other || portrait), likewise."""
    portrait_top: NDArray[np.float32]
    """What the other gives to the portrait's `monitor.overlap_k` top tokens together."""
    other_top: NDArray[np.float32]
    """What the portrait gives to the other's, as far as it told."""
    logprobs: NDArray[np.float32]
    """Of the portrait's tokens."""
    entropies: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch of an update: OPD from its scores, or RLVR from the rewards without them."""

    domain: str
    batch: RolloutBatch
    scores: TeacherOutputs | None = None
    ref_logprobs: NDArray[np.float32] | None = None
    """Shape `N`, under theta_0; only reward extrapolation asks for them."""

    beta: float = 1.0
    """Factor on the distillation signal."""


@dataclass(frozen=True, eq=False)
class UpdateRequest:
    """All lessons of a branch in one step; they make one optimizer update."""

    lessons: tuple[TrainingBatch, ...]
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
    """First and one past the last of the problems asked for now; the others' draws count, too."""


@dataclass(frozen=True, eq=False)
class EvaluationRollouts:
    """The rewards of an evaluation; statistics are made of them elsewhere."""

    suites: tuple[str, ...]
    """The suite of each of the P problems."""

    rewards: NDArray[np.float32]
    """Shape `P S`."""

    lengths: NDArray[np.int32]
    """Shape `P S`, completion tokens."""

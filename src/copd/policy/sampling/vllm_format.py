"""What vLLM takes and gives, as plain values: a policy's wishes and prompts to its words, and what
it wrote to samples.

Knows no weights and calls nothing of vLLM; names and shapes are those of vLLM 0.33.0's sources.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from copd.policy.rendering.render import Prompt
from copd.policy.sampling.protocol import SamplingRequest
from copd.policy.sampling.sampler import Samples

Kind = Literal["image", "video"]

FIELDS: dict[Kind, tuple[str, str]] = {
    "image": ("pixel_values", "image_grid_thw"),
    "video": ("pixel_values_videos", "video_grid_thw"),
}
"""Of a prompt's media, by kind: rows of pixels, and their grids."""


@runtime_checkable
class SampledLogprobs(Protocol):
    """`vllm.logprobs.FlatLogprobs`: of several tokens at a position the sampled one is first."""

    start_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


@runtime_checkable
class VllmOutput(Protocol):
    """`vllm.CompletionOutput`; the token that ended it is its last one."""

    token_ids: Sequence[int]
    logprobs: SampledLogprobs | None
    finish_reason: str | None


def seed_at(seed: int, place: int) -> int:
    """For the prompt at a place of a batch; its completions take the seeds from it on."""
    digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def sampling_settings(
    wanted: SamplingRequest,
    index: int,
    *,
    max_tokens: int,
    banned: Sequence[int],
    ends: frozenset[int],
) -> dict[str, Any]:
    """Those of `vllm.SamplingParams` for one prompt.

    All ends are told, as vLLM's own would be those of files. A bias of -inf leaves the softmax to
    the others. vLLM writes only one greedy completion, at temperature 1 as for its log-probability.
    """
    return {
        "n": wanted.group_size if wanted.temperature else 1,
        "temperature": wanted.temperature,
        "seed": seed_at(wanted.seed, wanted.first_prompt + index),
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stop_token_ids": sorted(ends),
        "logit_bias": dict.fromkeys(banned, -float("inf")),
        "logprobs": 0,
        "flat_logprobs": True,
        "detokenize": False,
    }


@dataclass(frozen=True, eq=False)
class MediaSpan:
    """A picture or clip of a prompt: where it is in the tokens, and what it is."""

    offset: int
    length: int
    is_visual: Bool[Tensor, "L"] | None
    """Which of these tokens stand for pixels; None where all do."""
    identity: str
    """Equal for equal pixels: vLLM keeps what it made of them under this name."""


def place_media(prompt: Prompt, kind: Kind, *, token: int, merge_size: int) -> list[MediaSpan]:
    """The prompt's pictures or clips, in their order.

    Each frame of a clip has a mark before it and one after; vLLM looks for the first mark from the
    clip's offset on.
    """
    pixels_name, grid_name = FIELDS[kind]
    if grid_name not in prompt.media:
        return []
    num_patches = prompt.media[grid_name].prod(dim=1)
    places = (prompt.input_ids == token).nonzero()[:, 0]
    own_places = places.split((num_patches // merge_size**2).tolist())
    own_pixels = prompt.media[pixels_name].split(num_patches.tolist())
    found = []
    for index, (own, pixels) in enumerate(zip(own_places, own_pixels, strict=True)):
        margin = int(kind == "video")
        first, end = int(own[0]) - margin, int(own[-1]) + 1 + margin
        is_visual = prompt.input_ids[first:end] == token
        digest = hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=16)
        digest.update(prompt.media[grid_name][index].contiguous().numpy().tobytes())
        every = bool(is_visual.all())
        found.append(
            MediaSpan(first, end - first, None if every else is_visual, digest.hexdigest())
        )
    return found


def to_samples(rows: Sequence[VllmOutput]) -> Samples:
    """What vLLM wrote, row by row, as the policy's own sampler would give it."""
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.int64)
    token_ids = np.zeros((len(rows), lengths.max()), dtype=np.int32)
    logprobs = np.zeros(token_ids.shape, dtype=np.float32)
    for place, row in enumerate(rows):
        told = row.logprobs
        first = [] if told is None else told.start_indices
        said = [] if told is None else [told.token_ids[i] for i in first]
        if row.finish_reason not in ("stop", "length") or said != list(row.token_ids):
            raise RuntimeError(
                "vLLM must write completions to their end and tell each token's log-probability: "
                f"got {len(row.token_ids)} tokens, {len(said)} told, ended by {row.finish_reason}."
            )
        token_ids[place, : lengths[place]] = row.token_ids
        logprobs[place, : lengths[place]] = [told.logprobs[i] for i in first] if told else []
    if not np.isfinite(logprobs).all():
        raise FloatingPointError(
            "sampling needs finite log-probabilities: got nan or infinity from vLLM. "
            "Go back to weights from before they diverged."
        )
    return Samples(token_ids, logprobs, lengths)

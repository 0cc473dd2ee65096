"""Translation of prompts and requests to vLLM's values, and of its outputs to samples.

It does not import vLLM. Names and shapes are those of vLLM 0.33.0's sources.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from copd.policy.rendering.pixels import MEDIA_FIELDS
from copd.policy.rendering.render import Prompt
from copd.policy.sampling.protocol import SamplingRequest
from copd.policy.sampling.sampler import Samples


@runtime_checkable
class SampledLogprobs(Protocol):
    """`vllm.logprobs.FlatLogprobs`: the sampled token is the first of those at a position."""

    start_indices: list[int]
    token_ids: list[int]
    logprobs: list[float]


@runtime_checkable
class VllmOutput(Protocol):
    """`vllm.CompletionOutput`, which contains the token that ended it."""

    token_ids: Sequence[int]
    logprobs: SampledLogprobs | None
    finish_reason: str | None


def seed_at(seed: int, place: int) -> int:
    """Return the first seed of the completions for the prompt at a place of a batch."""
    digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def sampling_settings(
    request: SamplingRequest,
    index: int,
    *,
    max_tokens: int,
    banned: Sequence[int],
    ends: frozenset[int],
) -> dict[str, Any]:
    """Return the arguments of `vllm.SamplingParams` for one prompt of a request.

    All end tokens are listed, since vLLM would take its own from files. A bias of -inf leaves the
    softmax to the other tokens. A greedy group is one completion, which vLLM reports at
    temperature 1.
    """
    return {
        "n": request.group_size if request.temperature else 1,
        "temperature": request.temperature,
        "seed": seed_at(request.seed, request.first_prompt + index),
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
    """The place of an image or video in the tokens of a prompt."""

    offset: int
    length: int
    is_visual: Bool[Tensor, "L"] | None
    """Which of these tokens stand for pixels; None if all do."""
    identity: str
    """Equal for equal pixels: the name under which vLLM caches their features."""


def locate_media(
    prompt: Prompt, kind: Literal["image", "video"], *, token: int, merge_size: int
) -> list[MediaSpan]:
    """Locate the images or videos of a prompt, in their order.

    The span of a video includes the marks around each frame, since vLLM looks for the first one.
    """
    pixels_name, grid_name = MEDIA_FIELDS[kind]
    if grid_name not in prompt.media:
        return []
    num_patches = prompt.media[grid_name].prod(dim=1)
    places = (prompt.input_ids == token).nonzero()[:, 0]
    own_places = places.split((num_patches // merge_size**2).tolist())
    own_pixels = prompt.media[pixels_name].split(num_patches.tolist())
    spans = []
    for index, (own, pixels) in enumerate(zip(own_places, own_pixels, strict=True)):
        margin = int(kind == "video")
        first, end = int(own[0]) - margin, int(own[-1]) + 1 + margin
        is_visual = prompt.input_ids[first:end] == token
        digest = hashlib.blake2b(pixels.contiguous().numpy().tobytes(), digest_size=16)
        digest.update(prompt.media[grid_name][index].contiguous().numpy().tobytes())
        mask = None if is_visual.all() else is_visual
        spans.append(MediaSpan(first, end - first, mask, digest.hexdigest()))
    return spans


def to_samples(rows: Sequence[VllmOutput]) -> Samples:
    """Convert vLLM's outputs to what the policy's own sampler returns."""
    token_ids: list[int] = []
    values: list[float] = []
    for row in rows:
        flat = row.logprobs
        first = [] if flat is None else flat.start_indices
        scored = [] if flat is None else [flat.token_ids[i] for i in first]
        if row.finish_reason not in ("stop", "length") or scored != list(row.token_ids):
            raise RuntimeError(
                "vLLM must finish every completion and return each token's log-probability: got "
                f"{len(row.token_ids)} tokens, {len(scored)} with a log-probability, ended by "
                f"{row.finish_reason}."
            )
        token_ids += row.token_ids
        values += [flat.logprobs[i] for i in first] if flat else []
    logprobs = np.array(values, dtype=np.float32)
    if not np.isfinite(logprobs).all():
        raise FloatingPointError(
            "sampling needs finite log-probabilities: got nan or infinity from vLLM. "
            "Go back to weights from before they diverged."
        )
    lengths = np.array([len(row.token_ids) for row in rows], dtype=np.int32)
    return Samples(np.array(token_ids, dtype=np.int32), logprobs, lengths)

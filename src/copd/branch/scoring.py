"""Scores of completions under a policy; requests of several students joined into one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from copd.branch.micro_batches import Forward, MicroBatch
from copd.functional import token_logprobs, topk_logprobs
from copd.policy import PackedStates, Prompt, SharedPrefix
from copd.types import ScoreRequest, TeacherOutputs


@dataclass(frozen=True, eq=False)
class PolicyOutputs:
    """A policy's scores of completions at temperature 1, on the CPU."""

    logprobs: Float[Tensor, "N"]
    entropies: Float[Tensor, "N"]
    topk_ids: Int[Tensor, "M K"]
    topk_logprobs: Float[Tensor, "M K"]


@torch.no_grad()
def score_completions(
    forward: Forward,
    prompts: Sequence[Prompt],
    request: ScoreRequest,
    prefix: SharedPrefix | None = None,
    *,
    first: int = 0,
) -> PolicyOutputs:
    """Score every token of some completions, and return the top tokens at the probes.

    Args:
        forward: The policy to score with.
        prompts: Prompts of consecutive problems of the request.
        request: The completions of all problems.
        prefix: The prompts as an earlier pass read them; without it they are read here.
        first: Index of the problem that the first prompt belongs to.

    Returns:
        Outputs for the completions of the given prompts.
    """
    policy = forward.policy
    top_k = min(request.top_k or policy.vocab_size, policy.vocab_size)

    def compute(part: MicroBatch, states: PackedStates) -> PolicyOutputs:
        logprobs, entropies = token_logprobs(
            states.hidden, policy.head, states.token_ids, banned=policy.banned
        )
        probes = request.probes
        is_inside = (probes >= part.tokens.start) & (probes < part.tokens.stop)
        rows = torch.from_numpy(probes[is_inside] - part.tokens.start).long()
        probed = states.hidden[rows.to(states.hidden.device)]
        values, ids = topk_logprobs(probed, policy.head, k=top_k, banned=policy.banned)
        return PolicyOutputs(logprobs.cpu(), entropies.cpu(), ids.int().cpu(), values.cpu())

    lengths = [len(prompt.input_ids) for prompt in prompts]
    source = prompts if prefix is None else prefix
    outputs = [out for _, out in forward.run(request, source, lengths, compute, first=first)]
    return PolicyOutputs(
        torch.cat([out.logprobs for out in outputs]),
        torch.cat([out.entropies for out in outputs]),
        torch.cat([out.topk_ids for out in outputs]),
        torch.cat([out.topk_logprobs for out in outputs]),
    )


def teacher_outputs(shards: Sequence[PolicyOutputs], request: ScoreRequest) -> TeacherOutputs:
    """Join the outputs for all shards of a request into the answer to it."""
    return TeacherOutputs(
        logprobs=np.concatenate([shard.logprobs.numpy() for shard in shards]),
        probes=request.probes,
        topk_ids=np.concatenate([shard.topk_ids.numpy() for shard in shards]),
        topk_logprobs=np.concatenate([shard.topk_logprobs.numpy() for shard in shards]),
    )


def join_requests(requests: Sequence[ScoreRequest]) -> ScoreRequest:
    """Join requests end to end into one. All must have the same `top_k`."""
    starts = _starts([len(request.token_ids) for request in requests])
    assert len({request.top_k for request in requests}) == 1, "one run has one top_k"
    return ScoreRequest(
        problems=tuple(problem for request in requests for problem in request.problems),
        token_ids=np.concatenate([request.token_ids for request in requests]),
        lengths=np.concatenate([request.lengths for request in requests]),
        probes=np.concatenate(
            [request.probes + start for request, start in zip(requests, starts, strict=True)]
        ).astype(np.int32),
        top_k=requests[0].top_k,
    )


def split_outputs(
    outputs: TeacherOutputs, requests: Sequence[ScoreRequest]
) -> list[TeacherOutputs]:
    """Split the answer to `join_requests(requests)` into one answer per request."""
    tokens = _starts([len(request.token_ids) for request in requests])
    probes = _starts([len(request.probes) for request in requests])
    logprobs = np.split(outputs.logprobs, tokens[1:])
    ids = np.split(outputs.topk_ids, probes[1:])
    values = np.split(outputs.topk_logprobs, probes[1:])
    return [
        TeacherOutputs(logprobs[i], request.probes, ids[i], values[i])
        for i, request in enumerate(requests)
    ]


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()]

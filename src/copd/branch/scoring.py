"""What a policy says about completions; several students' questions to a teacher as one, and its
answer back to each. Knows no training."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from copd.branch.advantages import completions_of, micro_batches
from copd.branch.learner import Learner
from copd.branch.precision import autocast
from copd.functional import token_logprobs, topk_logprobs
from copd.policy import Policy, Prompt, SharedPrefix
from copd.types import ScoreRequest, TeacherOutputs


@dataclass(frozen=True, eq=False)
class PolicyOutputs:
    """A policy's own view of completions, at temperature 1, on the CPU."""

    logprobs: Float[Tensor, "N"]
    entropies: Float[Tensor, "N"]
    topk_ids: Int[Tensor, "M K"]
    topk_logprobs: Float[Tensor, "M K"]


@torch.no_grad()
def score_completions(
    policy: Policy,
    learning: Learner,
    prompts: Sequence[Prompt],
    request: ScoreRequest,
    prefix: SharedPrefix | None = None,
    *,
    first: int = 0,
) -> PolicyOutputs:
    """Every token's log-probability and entropy, and the top tokens at the probes.

    Takes the prompts as they were read before, with `prefix`, or else reads them. Where they are
    those of a run of the problems, of its tokens, from the `first` problem on.
    """
    head = policy.head
    top_k = min(request.top_k or head.shape[0], head.shape[0])
    logprobs, entropies, ids, told = [], [], [], []
    sizes = [len(prompt.input_ids) for prompt in prompts]
    for part in micro_batches(request, sizes, learning.micro_batch_tokens, first=first):
        with autocast(policy, learning.precision):
            if prefix is None:
                read = policy.read(prompts[part.problems])
            else:
                read = prefix.select(part.problems)
            states = policy.score_after(read, completions_of(request, part))
            at_token, of_all = token_logprobs(
                states.hidden, head, states.token_ids, banned=policy.banned
            )
            inside = (request.probes >= part.tokens.start) & (request.probes < part.tokens.stop)
            rows = torch.from_numpy(request.probes[inside] - part.tokens.start).long()
            probed = states.hidden[rows.to(states.hidden.device)]
            values, tokens = topk_logprobs(probed, head, k=top_k, banned=policy.banned)
        logprobs.append(at_token.cpu())
        entropies.append(of_all.cpu())
        told.append(values.cpu())
        ids.append(tokens.int().cpu())
    return PolicyOutputs(torch.cat(logprobs), torch.cat(entropies), torch.cat(ids), torch.cat(told))


def teacher_outputs(told: Sequence[PolicyOutputs], request: ScoreRequest) -> TeacherOutputs:
    """What was told of all pieces of a question, as a teacher's answer to it."""
    return TeacherOutputs(
        logprobs=np.concatenate([part.logprobs.numpy() for part in told]),
        probes=request.probes,
        topk_ids=np.concatenate([part.topk_ids.numpy() for part in told]),
        topk_logprobs=np.concatenate([part.topk_logprobs.numpy() for part in told]),
    )


def join_requests(requests: Sequence[ScoreRequest]) -> ScoreRequest:
    """All questions as one batch, end to end; they ask for equally many tokens at a probe."""
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


def split_outputs(scores: TeacherOutputs, requests: Sequence[ScoreRequest]) -> list[TeacherOutputs]:
    """The answer to `join_requests`, question by question."""
    tokens = _starts([len(request.token_ids) for request in requests])
    probes = _starts([len(request.probes) for request in requests])
    logprobs = np.split(scores.logprobs, tokens[1:])
    ids, told = np.split(scores.topk_ids, probes[1:]), np.split(scores.topk_logprobs, probes[1:])
    return [
        TeacherOutputs(logprobs[i], request.probes, ids[i], told[i])
        for i, request in enumerate(requests)
    ]


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()]

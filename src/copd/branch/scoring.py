"""What a teacher says about completions; several students' questions to it as one, and its answer
back to each. Knows no training."""

from collections.abc import Sequence

import numpy as np
import torch

from copd.branch.learning import Learning
from copd.branch.lesson import completions_of, micro_batches
from copd.branch.precision import autocast
from copd.functional import token_logprobs, topk_logprobs
from copd.policy import Policy, Prompt
from copd.types import ScoreRequest, Scores


@torch.no_grad()
def score(
    policy: Policy, learning: Learning, prompts: Sequence[Prompt], request: ScoreRequest
) -> Scores:
    """Every token's log-probability, and the top tokens at the probes, at temperature 1."""
    head = policy.head
    top_k = min(request.top_k or head.shape[0], head.shape[0])
    logprobs, ids, told = [], [], []
    sizes = [len(prompt.input_ids) for prompt in prompts]
    for part in micro_batches(request, sizes, learning.micro_batch_tokens):
        with autocast(policy, learning.precision):
            states = policy.score(prompts[part.problems], completions_of(request, part))
            at_token, _ = token_logprobs(
                states.hidden, head, states.token_ids, banned=policy.banned
            )
            inside = (request.probes >= part.tokens.start) & (request.probes < part.tokens.stop)
            rows = torch.from_numpy(request.probes[inside] - part.tokens.start).long()
            probed = states.hidden[rows.to(states.hidden.device)]
            values, tokens = topk_logprobs(probed, head, k=top_k, banned=policy.banned)
        logprobs.append(at_token.cpu())
        told.append(values.cpu())
        ids.append(tokens.int().cpu())
    return Scores(
        logprobs=torch.cat(logprobs).numpy(),
        probes=request.probes,
        topk_ids=torch.cat(ids).numpy(),
        topk_logprobs=torch.cat(told).numpy(),
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


def split_scores(scores: Scores, requests: Sequence[ScoreRequest]) -> list[Scores]:
    """The answer to `join_requests`, question by question."""
    tokens = _starts([len(request.token_ids) for request in requests])
    probes = _starts([len(request.probes) for request in requests])
    logprobs = np.split(scores.logprobs, tokens[1:])
    ids, told = np.split(scores.topk_ids, probes[1:]), np.split(scores.topk_logprobs, probes[1:])
    return [
        Scores(logprobs[i], request.probes, ids[i], told[i]) for i, request in enumerate(requests)
    ]


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()]

"""Several students' questions to a teacher as one, and its answer back to each. Runs no model."""

from collections.abc import Sequence

import numpy as np

from copd.types import ScoreRequest, Scores


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

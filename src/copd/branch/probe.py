"""How a policy behaves on some problems, and how like it another policy is there.

Everything is at temperature 1 and without a graph. Knows no rewards and no training.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from copd.branch.advantages import completions_of, micro_batches
from copd.branch.learner import Learner
from copd.branch.precision import autocast
from copd.branch.scoring import score_completions
from copd.functional import (
    entropy,
    forward_kl,
    full_logprobs,
    reverse_kl,
    topk_buckets,
    topk_overlap,
)
from copd.policy import Policy, Prompt, Sampler, SamplingRequest, SharedPrefix
from copd.types import (
    Agreement,
    Completion,
    ProbeRollouts,
    RolloutRequest,
    ScoreRequest,
    TokenDivergence,
)

_CHUNK = 1024
"""Whole distributions at a time."""


@torch.no_grad()
def probe(
    policy: Policy,
    learning: Learner,
    sampler: Sampler,
    requests: Sequence[RolloutRequest],
    prompts: Sequence[Sequence[Prompt]],
    max_completion_tokens: int,
) -> list[ProbeRollouts]:
    """`monitor.num_samples` completions per problem, and the policy's top tokens at some of theirs.

    The probes are `monitor.num_probe_tokens` random tokens of a portrait, or all if it has fewer.
    """
    wanted = [
        SamplingRequest(own, learning.monitor.num_samples, 1.0, request.seed)
        for request, own in zip(requests, prompts, strict=True)
    ]
    sampled = sampler.sample(wanted, max_completion_tokens)
    prefixes = sampled.prefixes or [None] * len(requests)
    return [
        _score_own(policy, learning, _question(learning, request, groups), groups, own, prefix)
        for request, groups, own, prefix in zip(
            requests, sampled.groups, prompts, prefixes, strict=True
        )
    ]


def measure_agreement(
    policy: Policy,
    learning: Learner,
    portraits: Sequence[ProbeRollouts],
    prompts: Sequence[Prompt],
) -> list[Agreement]:
    """How like each portrait the policy is: the means of `token_divergences` over its probes."""
    return [
        Agreement(
            overlap=float(torch.from_numpy(found.overlap).mean()),
            symmetric_kl=float(torch.from_numpy(found.reverse_kl + found.forward_kl).mean()),
        )
        for found in token_divergences(policy, learning, portraits, prompts)
    ]


@torch.no_grad()
def token_divergences(
    policy: Policy,
    learning: Learner,
    portraits: Sequence[ProbeRollouts],
    prompts: Sequence[Prompt],
) -> list[TokenDivergence]:
    """The policy at every probe of portraits of the same problems, which it reads once.

    The overlap is of the two top `monitor.overlap_k`; a KL is taken over the portrait's own top
    tokens and one tail bucket, so it is a lower bound, exact if they are the vocabulary.
    """
    question, source = interleave_probes(portraits)
    told_ids = torch.from_numpy(np.concatenate([p.topk_ids for p in portraits]))
    told = torch.from_numpy(np.concatenate([p.topk_logprobs for p in portraits]))
    found = torch.zeros(len(fields(TokenDivergence)), len(source))
    # a portrait's spare rows may be more than this policy has: they are banned here, too
    missing = max(0, int(told_ids.max()) + 1 - policy.vocab_size)
    sizes = [len(prompt.input_ids) for prompt in prompts]
    for part in micro_batches(question, sizes, learning.micro_batch_tokens):
        with autocast(policy, learning.precision):
            states = policy.score(prompts[part.problems], completions_of(question, part))
            inside = (question.probes >= part.tokens.start) & (question.probes < part.tokens.stop)
            rows = torch.from_numpy(question.probes[inside] - part.tokens.start).long()
            places = torch.from_numpy(source[inside])
            for some, at in zip(rows.split(_CHUNK), places.split(_CHUNK), strict=True):
                there = some.to(policy.device)
                own = full_logprobs(states.hidden[there], policy.head, banned=policy.banned)
                own = pad(own, (0, missing), value=-torch.inf)
                ids, logprobs = told_ids[at].to(policy.device), told[at].to(policy.device)
                tokens = states.token_ids[there]
                columns = _token_divergences(own, ids, logprobs, tokens, learning.monitor.overlap_k)
                found[:, at] = columns.cpu()
    probed = [len(portrait.probes) for portrait in portraits]
    return [TokenDivergence(*one.numpy()) for one in found.split(probed, dim=1)]


def _token_divergences(
    own: Float[Tensor, "M V"],
    ids: Int[Tensor, "M K"],
    told: Float[Tensor, "M K"],
    tokens: Int[Tensor, "M"],
    overlap_k: int,
) -> Float[Tensor, "F M"]:
    """The fields of `TokenDivergence`, in their order, where the portrait told `ids` with `told`."""
    k = min(overlap_k, ids.shape[1])
    top = own.topk(k).indices
    all_told = torch.full_like(own, -torch.inf).scatter(-1, ids.long(), told.to(own.dtype))
    here, there = topk_buckets(own, told, ids)
    return torch.stack(
        [
            topk_overlap(ids[:, :k], top),
            reverse_kl(there, here),
            forward_kl(there, here),
            own.gather(-1, ids[:, :k].long()).exp().sum(dim=-1),
            all_told.gather(-1, top).exp().sum(dim=-1),
            own.gather(-1, tokens[:, None].long())[:, 0],
            entropy(own),
        ]
    )


def interleave_probes(portraits: Sequence[ProbeRollouts]) -> tuple[ScoreRequest, NDArray[np.int64]]:
    """Portraits of the same problems as one question, all completions of a problem together.

    Also from which probe, counted over all portraits, each of its probes comes.
    """
    problems = portraits[0].problems
    assert all(portrait.problems == problems for portrait in portraits), "one set of problems"
    lengths = np.concatenate([portrait.lengths for portrait in portraits])
    order = np.arange(len(lengths)).reshape(len(portraits), len(problems), -1)
    order = order.swapaxes(0, 1).flatten()  # portrait, problem, sample -> problem, portrait, sample
    starts = np.cumsum(lengths) - lengths
    token_of = np.concatenate([np.arange(starts[b], starts[b] + lengths[b]) for b in order])  # N
    place_of = np.argsort(token_of)
    offsets = np.cumsum([0, *(len(portrait.token_ids) for portrait in portraits[:-1])])
    probes = place_of[
        np.concatenate([p.probes + offset for p, offset in zip(portraits, offsets, strict=True)])
    ]
    source = np.argsort(probes)
    question = ScoreRequest(
        problems=problems,
        token_ids=np.concatenate([portrait.token_ids for portrait in portraits])[token_of],
        lengths=lengths[order],
        probes=probes[source].astype(np.int32),
        top_k=0,
    )
    return question, source


def _question(
    learning: Learner, request: RolloutRequest, groups: Sequence[Sequence[Completion]]
) -> ScoreRequest:
    """What a policy is to tell about its own completions."""
    completions = [completion for group in groups for completion in group]
    token_ids = np.concatenate([completion.token_ids for completion in completions])
    size = min(learning.monitor.num_probe_tokens, len(token_ids))
    probes = np.random.default_rng(request.seed).choice(len(token_ids), size, replace=False)
    return ScoreRequest(
        problems=request.problems,
        token_ids=token_ids,
        lengths=np.array([len(c.token_ids) for c in completions], dtype=np.int32),
        probes=np.sort(probes).astype(np.int32),
        top_k=learning.monitor.probe_top_k,
    )


def _score_own(
    policy: Policy,
    learning: Learner,
    question: ScoreRequest,
    groups: Sequence[Sequence[Completion]],
    prompts: Sequence[Prompt],
    prefix: SharedPrefix | None,
) -> ProbeRollouts:
    """The policy's own distributions; takes the prompts as sampling has read them, if it can."""
    told = score_completions(policy, learning, prompts, question, prefix)
    probes = torch.from_numpy(question.probes).long()
    return ProbeRollouts(
        problems=question.problems,
        token_ids=question.token_ids,
        lengths=question.lengths,
        probes=question.probes,
        topk_ids=told.topk_ids.numpy(),
        topk_logprobs=told.topk_logprobs.numpy(),
        logprobs=told.logprobs[probes].numpy(),
        entropies=told.entropies[probes].numpy(),
        entropy=float(told.entropies.mean()),
        texts=tuple(completion.text for group in groups for completion in group),
    )

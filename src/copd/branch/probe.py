"""Probe rollouts: how a policy behaves on held-out problems, and how far other policies differ.

Everything is at temperature 1 and without gradients.
"""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from copd.branch.micro_batches import Forward, MicroBatch
from copd.branch.scoring import score_completions
from copd.config import MonitorConfig
from copd.functional import (
    entropy,
    forward_kl,
    full_logprobs,
    reverse_kl,
    topk_buckets,
    topk_overlap,
)
from copd.policy import PackedStates, Prompt, Sampler, SamplingRequest, SharedPrefix
from copd.types import (
    Agreement,
    Completions,
    ProbeRollouts,
    RolloutRequest,
    ScoreRequest,
    TokenDivergence,
)

_CHUNK = 1024
"""Whole distributions computed at a time."""


@torch.no_grad()
def sample_probes(
    forward: Forward,
    monitor: MonitorConfig,
    sampler: Sampler,
    requests: Sequence[RolloutRequest],
    prompts: Sequence[Sequence[Prompt]],
    max_completion_tokens: int,
) -> list[ProbeRollouts]:
    """Sample `monitor.num_samples` completions per problem, with the policy's top tokens at probes.

    The probes are `monitor.num_probe_tokens` random tokens, or all tokens if there are fewer.
    """
    sampling = [
        SamplingRequest(own, monitor.num_samples, 1.0, request.seed)
        for request, own in zip(requests, prompts, strict=True)
    ]
    sampled = sampler.sample(sampling, max_completion_tokens)
    prefixes = sampled.prefixes or [None] * len(requests)
    return [
        _score_probes(forward, own, _probe_request(monitor, request, found), found.texts, prefix)
        for request, found, own, prefix in zip(
            requests, sampled.completions, prompts, prefixes, strict=True
        )
    ]


def measure_agreement(
    forward: Forward,
    monitor: MonitorConfig,
    probes: Sequence[ProbeRollouts],
    prompts: Sequence[Prompt],
) -> list[Agreement]:
    """Return how much the policy agrees with each probe rollouts: means over their probes."""
    return [
        Agreement(
            overlap=float(torch.from_numpy(found.overlap).mean()),
            symmetric_kl=float(torch.from_numpy(found.reverse_kl + found.forward_kl).mean()),
        )
        for found in token_divergences(forward, monitor, probes, prompts)
    ]


@torch.no_grad()
def token_divergences(
    forward: Forward,
    monitor: MonitorConfig,
    probes: Sequence[ProbeRollouts],
    prompts: Sequence[Prompt],
) -> list[TokenDivergence]:
    """Compare the policy with others at every probe of their rollouts.

    Each KL is taken over the sampling policy's own top tokens and one tail bucket. It is a lower
    bound, and exact if those tokens are the whole vocabulary.

    Args:
        forward: The policy to compare.
        monitor: `overlap_k` is used.
        probes: Probe rollouts of other policies, all on the same problems.
        prompts: Prompts of those problems. The policy reads them once for all rollouts.

    Returns:
        One value for each of `probes`.
    """
    policy = forward.policy
    request, source = interleave_probes(probes)
    top_ids = torch.from_numpy(np.concatenate([p.topk_ids for p in probes]))
    top_logprobs = torch.from_numpy(np.concatenate([p.topk_logprobs for p in probes]))
    found = torch.zeros(len(fields(TokenDivergence)), len(source))
    # the other policy's head may have more unused rows than this one's; they are banned here too
    num_missing = max(0, int(top_ids.max()) + 1 - policy.vocab_size)

    def compute(part: MicroBatch, states: PackedStates) -> None:
        is_inside = (request.probes >= part.tokens.start) & (request.probes < part.tokens.stop)
        rows = torch.from_numpy(request.probes[is_inside] - part.tokens.start).long()
        columns = torch.from_numpy(source[is_inside])
        for row, at in zip(rows.split(_CHUNK), columns.split(_CHUNK), strict=True):
            here = row.to(policy.device)
            own = full_logprobs(states.hidden[here], policy.head, banned=policy.banned)
            own = pad(own, (0, num_missing), value=-torch.inf)
            ids, logprobs = top_ids[at].to(policy.device), top_logprobs[at].to(policy.device)
            tokens = states.token_ids[here]
            found[:, at] = _divergences(own, ids, logprobs, tokens, monitor.overlap_k).cpu()

    for _ in forward.run(request, prompts, [len(p.input_ids) for p in prompts], compute):
        pass
    sizes = [len(rollouts.probes) for rollouts in probes]
    return [TokenDivergence(*each.numpy()) for each in found.split(sizes, dim=1)]


def _divergences(
    own: Float[Tensor, "M V"],
    top_ids: Int[Tensor, "M K"],
    top_logprobs: Float[Tensor, "M K"],
    tokens: Int[Tensor, "M"],
    overlap_k: int,
) -> Float[Tensor, "F M"]:
    """Return the fields of `TokenDivergence`, in their order."""
    k = min(overlap_k, top_ids.shape[1])
    own_top = own.topk(k).indices
    others = torch.full_like(own, -torch.inf).scatter(
        -1, top_ids.long(), top_logprobs.to(own.dtype)
    )
    here, there = topk_buckets(own, top_logprobs, top_ids)
    return torch.stack(
        [
            topk_overlap(top_ids[:, :k], own_top),
            reverse_kl(there, here),
            forward_kl(there, here),
            own.gather(-1, top_ids[:, :k].long()).exp().sum(dim=-1),
            others.gather(-1, own_top).exp().sum(dim=-1),
            own.gather(-1, tokens[:, None].long())[:, 0],
            entropy(own),
        ]
    )


def interleave_probes(probes: Sequence[ProbeRollouts]) -> tuple[ScoreRequest, NDArray[np.int64]]:
    """Join probe rollouts of the same problems into one request, ordered by problem.

    Args:
        probes: Probe rollouts of several policies.

    Returns:
        The request, and for each of its probes its index among the probes of all rollouts.
    """
    problems = probes[0].problems
    assert all(rollouts.problems == problems for rollouts in probes), "one set of problems"
    lengths = np.concatenate([rollouts.lengths for rollouts in probes])
    order = np.arange(len(lengths)).reshape(len(probes), len(problems), -1)
    order = order.swapaxes(0, 1).flatten()  # policy, problem, sample -> problem, policy, sample
    starts = np.cumsum(lengths) - lengths
    token_of = np.concatenate([np.arange(starts[b], starts[b] + lengths[b]) for b in order])  # N
    position_of = np.argsort(token_of)
    offsets = np.cumsum([0, *(len(rollouts.token_ids) for rollouts in probes[:-1])])
    positions = position_of[
        np.concatenate([p.probes + offset for p, offset in zip(probes, offsets, strict=True)])
    ]
    source = np.argsort(positions)
    request = ScoreRequest(
        problems=problems,
        token_ids=np.concatenate([rollouts.token_ids for rollouts in probes])[token_of],
        lengths=lengths[order],
        probes=positions[source].astype(np.int32),
        top_k=0,
    )
    return request, source


def _probe_request(
    monitor: MonitorConfig, request: RolloutRequest, completions: Completions
) -> ScoreRequest:
    """Build the request by which a policy scores its own completions."""
    num_tokens = len(completions.token_ids)
    size = min(monitor.num_probe_tokens, num_tokens)
    probes = np.random.default_rng(request.seed).choice(num_tokens, size, replace=False)
    return ScoreRequest(
        problems=request.problems,
        token_ids=completions.token_ids,
        lengths=completions.lengths,
        probes=np.sort(probes).astype(np.int32),
        top_k=monitor.probe_top_k,
    )


def _score_probes(
    forward: Forward,
    prompts: Sequence[Prompt],
    request: ScoreRequest,
    texts: tuple[str, ...],
    prefix: SharedPrefix | None,
) -> ProbeRollouts:
    outputs = score_completions(forward, prompts, request, prefix)
    probes = torch.from_numpy(request.probes).long()
    return ProbeRollouts(
        problems=request.problems,
        token_ids=request.token_ids,
        lengths=request.lengths,
        probes=request.probes,
        topk_ids=outputs.topk_ids.numpy(),
        topk_logprobs=outputs.topk_logprobs.numpy(),
        logprobs=outputs.logprobs[probes].numpy(),
        entropies=outputs.entropies[probes].numpy(),
        entropy=float(outputs.entropies.mean()),
        texts=texts,
    )

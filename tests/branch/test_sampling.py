"""Batches sampled together: cut into loops that fit, whatever the cut the same tokens."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from copd.branch.micro_batches import Forward
from copd.branch.sampling import InProcessSampler, plan_decode_loops
from copd.policy import Prompt, SamplingRequest
from copd.types import ProblemId


@given(
    st.lists(st.lists(st.integers(1, 9), max_size=5), max_size=4),
    st.integers(1, 30),
    st.integers(1, 30),
)
def test_loops_cover_every_prompt_once_in_order_within_the_limits(sizes, max_rows, max_tokens):
    batches = [
        SamplingRequest(
            [Prompt(torch.zeros(n, dtype=torch.int64)) for n in own], 2 + index, 1.0, seed=0
        )
        for index, own in enumerate(sizes)
    ]
    loops = list(plan_decode_loops(batches, max_rows=max_rows, max_tokens=max_tokens))
    seen = [(i, place) for loop in loops for i, part in loop for place in range(100)[part]]
    assert seen == [(i, place) for i, own in enumerate(sizes) for place in range(len(own))]
    for loop in loops:
        chosen = [(i, size) for i, part in loop for size in sizes[i][part]]
        rows = sum(2 + i for i, _ in chosen)
        fits = rows <= max_rows and sum(size for _, size in chosen) <= max_tokens
        assert fits or len(chosen) == 1
    for loop, following in pairwise(loops):  # the next one did not fit
        chosen = [(i, size) for i, part in loop for size in sizes[i][part]]
        index, part = following[0]
        rows = sum(2 + i for i, _ in chosen) + 2 + index
        tokens = sum(size for _, size in chosen) + sizes[index][part.start]
        assert rows > max_rows or tokens > max_tokens


@pytest.fixture
def batches(make_engine):
    engine = make_engine("a")
    branch = engine._branches["a"]

    def make():
        return [
            SamplingRequest(
                branch._prompt_cache.prompts([ProblemId(domain, "train", i) for i in range(3)]),
                group_size=4,
                temperature=temperature,
                seed=seed,
            )
            for seed, (domain, temperature) in enumerate({"text": 1.0, "video": 0.8}.items())
        ]

    return branch._policy, make()


def sampled(policy, batches, max_prompt_tokens, *, max_rows=1024, **options):
    sampler = InProcessSampler(Forward(policy, max_prompt_tokens, "float32"), max_rows)
    return sampler.sample(batches, 12, **options)


def test_the_cut_changes_no_token(batches):
    policy, wanted = batches
    whole = sampled(policy, wanted, 16384)
    pieces = sampled(policy, wanted, 40)
    few = sampled(policy, wanted, 16384, max_rows=5)
    tokens = [
        [[c.token_ids.tolist() for [c] in batch.groups(1)] for batch in result.completions]
        for result in (whole, pieces, few)
    ]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len({tuple(ids) for ids in tokens[0][0]}) > 4


def test_prompts_are_kept_if_read_in_one_pass_and_with_a_graph_when_asked(batches):
    policy, wanted = batches
    plain = sampled(policy, wanted, 16384).prefixes
    assert plain is not None
    assert not any(prefix.last_states.requires_grad for prefix in plain)
    assert sampled(policy, wanted, 40, keep_graph=True).prefixes is None
    kept = sampled(policy, wanted, 16384, keep_graph=True).prefixes
    assert kept is not None
    assert [len(prefix.last_states) for prefix in kept] == [3, 3]
    assert all(prefix.last_states.requires_grad for prefix in kept)

"""Decoding on static storage against decoding on growing storage."""

import pytest
import torch

from copd.functional.logprobs import full_logprobs
from copd.policy.policy import Policy
from copd.policy.sampling import decoding
from copd.policy.sampling.decoding import Decoding
from copd.policy.sampling.sampler import draw_tokens


def both(policy: Policy, prompts) -> tuple[Decoding, Decoding]:
    with torch.no_grad():
        prefix = policy.read(prompts)
    prompt_of_row = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    growing, static = (
        Decoding(policy.backbone, prefix, prompt_of_row, is_static=choice)
        for choice in (False, True)
    )
    return growing, static


@torch.no_grad()
def test_static_steps_give_the_states_of_growing_ones(seeing, prompts_of):
    growing, static = both(seeing, prompts_of(seeing, "mixed"))
    tokens = torch.randint(0, 90, (9, 7), generator=torch.Generator().manual_seed(0))
    for step in tokens[:5]:
        torch.testing.assert_close(static.step(step), growing.step(step), atol=2e-5, rtol=0)
    rows = torch.tensor([1, 3, 5, 6])
    growing, static = growing.select(rows), static.select(rows)
    for step in tokens[5:, rows]:
        torch.testing.assert_close(static.step(step), growing.step(step), atol=2e-5, rtol=0)


@torch.no_grad()
def test_storage_stays_where_it_is_until_it_is_full(seeing, prompts_of, monkeypatch):
    monkeypatch.setitem(decoding._FIRST_WIDTH, "static", 4)
    growing, static = both(seeing, prompts_of(seeing, "mixed"))
    places = []
    for step in torch.arange(9 * 7).unflatten(0, (9, 7)):
        torch.testing.assert_close(static.step(step), growing.step(step), atol=2e-5, rtol=0)
        places.append([part.data_ptr() for own in static.own.values() for part in own])
    assert [len(set(map(tuple, places[a:b]))) for a, b in ((0, 4), (4, 8))] == [1, 1]
    assert places[3] != places[4] and places[7] != places[8]
    assert static.own[0][0].shape[3] == 16


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_never_waits_between_looks(seeing_folder, prompts_of, no_waiting):
    policy = Policy.load(seeing_folder, device="cuda")
    prefix = policy.read(prompts_of(policy, "mixed"))
    prompt_of_row = torch.tensor([0, 0, 1, 2, 2, 2, 3], device="cuda")
    decoding = Decoding(policy.backbone, prefix, prompt_of_row, is_static=True)
    tokens = torch.zeros(7, dtype=torch.int64, device="cuda")
    noise = torch.rand(7, dtype=torch.float64, device="cuda")
    for _ in range(2):  # warms up, then captures
        decoding.step(tokens)
    with no_waiting():
        for _ in range(3):
            states = decoding.step(tokens)
            scores = full_logprobs(states, policy.head, banned=policy.banned)
            tokens = draw_tokens(scores, noise)
    assert tokens.shape == (7,)

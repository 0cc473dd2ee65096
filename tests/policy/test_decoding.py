"""Decoding on storage that never moves against decoding that grows."""

import torch

from copd.policy.decoding import Decoding
from copd.policy.policy import Policy


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
    kept = torch.tensor([1, 3, 5, 6])
    growing, static = growing.keep(kept), static.keep(kept)
    for step in tokens[5:, kept]:
        torch.testing.assert_close(static.step(step), growing.step(step), atol=2e-5, rtol=0)


@torch.no_grad()
def test_storage_stays_where_it_is_until_it_is_full(seeing, prompts_of, monkeypatch):
    monkeypatch.setattr("copd.policy.decoding._FIRST_STATIC_WIDTH", 4)
    growing, static = both(seeing, prompts_of(seeing, "mixed"))
    places = []
    for step in torch.arange(9 * 7).unflatten(0, (9, 7)):
        torch.testing.assert_close(static.step(step), growing.step(step), atol=2e-5, rtol=0)
        places.append([part.data_ptr() for own in static.own.values() for part in own])
    assert [len(set(map(tuple, places[a:b]))) for a, b in ((0, 4), (4, 8))] == [1, 1]
    assert places[3] != places[4] and places[7] != places[8]
    assert static.own[0][0].shape[3] == 16

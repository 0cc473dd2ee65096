"""A frozen vision tower encodes a prompt once, for all policies; a trained one every time."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from copd.policy import Policy


@pytest.fixture
def policies(seeing_folder) -> list[Policy]:
    return [Policy.load(seeing_folder) for _ in range(2)]


@contextmanager
def encoded_pixel_rows(*policies: Policy) -> Iterator[list[int]]:
    rows: list[int] = []
    hooks = [
        policy.model.model.visual.register_forward_pre_hook(
            lambda module, args: rows.append(len(args[0]))
        )
        for policy in policies
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("kind", ["image", "video", "mixed"])
def test_frozen_towers_of_equal_weights_share_features(policies, prompts_of, kind):
    first, second = policies
    expected = first.read(prompts_of(first, kind)).last_states
    for policy in policies:
        policy.set_vision_trainable(False)
    prompts = prompts_of(first, kind)
    with encoded_pixel_rows(first, second) as rows:
        found = first.read(prompts)
        again = second.read(prompts[::-1])
    num_rows = sum(
        len(p.media[name])
        for p in prompts
        for name in ("pixel_values", "pixel_values_videos")
        if name in p.media
    )
    assert sum(rows) == num_rows
    torch.testing.assert_close(found.last_states, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.last_states.flip(0), expected, atol=1e-5, rtol=0)


def test_only_new_prompts_are_encoded(policies, prompts_of):
    policy, _ = policies
    policy.set_vision_trainable(False)
    prompts = prompts_of(policy, "image")
    policy.read(prompts[:1])
    before = prompts[1].num_bytes
    with encoded_pixel_rows(policy) as rows:
        policy.read(prompts)
    assert sum(rows) == sum(len(prompt.media["pixel_values"]) for prompt in prompts[1:])
    assert prompts[1].num_bytes > before


def test_on_a_cpu_no_bit_depends_on_the_other_prompts(policies, prompts_of):
    """A resumed run reads other prompts together than the run that was not interrupted."""
    policy, _ = policies
    policy.set_vision_trainable(False)
    together, one_by_one = (prompts_of(policy, "mixed") for _ in range(2))
    policy.read(together)
    for prompt in one_by_one:
        policy.read([prompt])
    for a, b in zip(together, one_by_one, strict=True):
        assert all(torch.equal(a.features[tower], b.features[tower]) for tower in a.features)


def test_other_weights_or_precision_have_features_of_their_own(policies, prompts_of):
    first, second = policies
    for policy in policies:
        policy.set_vision_trainable(False)
    prompts = prompts_of(first, "image")
    first.read(prompts)
    with torch.no_grad():
        second.model.model.visual.patch_embed.proj.weight[0, 0, 0, 0, 0] += 1.0
    with encoded_pixel_rows(second) as rows:
        changed = second.read(prompts).last_states
        once = len(rows)
        assert once > 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            second.read(prompts)
        assert len(rows) == 2 * once
    assert not torch.allclose(changed, first.read(prompts).last_states, atol=1e-5)


def test_a_trained_tower_gets_its_gradient_every_time(policies, prompts_of):
    policy, _ = policies
    prompts = prompts_of(policy, "mixed")
    with encoded_pixel_rows(policy) as rows:
        for _ in range(2):
            policy.read(prompts).last_states.sum().backward()
    assert len(rows) == 2
    assert all(p.grad is not None for p in policy.model.model.visual.parameters())
    assert not any(prompt.features for prompt in prompts)

"""Group-relative advantages: hand-computed groups, equal rewards, invariances, refusals."""

import pytest
import torch

from copd.functional import group_relative


def test_hand_computed_groups_use_the_sample_deviation():
    """[1, 0, 0, 0]: mean 1/4, sample deviation 1/2 (population: 0.433)."""
    advantages = group_relative(torch.tensor([[1.0, 0, 0, 0], [1.0, 0, 0, 1.0]]))
    expected = torch.tensor([[1.5, -0.5, -0.5, -0.5], [0.866025, -0.866025, -0.866025, 0.866025]])
    torch.testing.assert_close(advantages, expected, atol=1e-5, rtol=0)


def test_eps_is_added_to_the_deviation():
    advantages = group_relative(torch.tensor([[1.0, 0, 0, 0]]), eps=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.75, -0.25, -0.25, -0.25]]))


def test_without_scale_only_the_mean_is_removed():
    advantages = group_relative(torch.tensor([[1.0, 0, 0, 0]]), scale=False)
    assert advantages.tolist() == [[0.75, -0.25, -0.25, -0.25]]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 0.7, 1e8])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
@pytest.mark.parametrize("scale", [True, False])
def test_equal_rewards_give_exactly_zero(reward: float, size: int, scale: bool):
    """The mean of 7 copies of 0.1 is not 0.1 in float32, so this is not for free."""
    advantages = group_relative(torch.full((2, size), reward), eps=1e-12, scale=scale)
    assert torch.equal(advantages, torch.zeros(2, size))


def test_every_group_has_mean_zero_and_deviation_one():
    rewards = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    advantages = group_relative(rewards)
    torch.testing.assert_close(advantages.mean(dim=1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantages.std(dim=1), torch.ones(6), atol=1e-4, rtol=0)


def test_groups_do_not_see_each_other():
    rewards = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([group_relative(rewards[i : i + 1]) for i in range(3)])
    assert torch.equal(group_relative(rewards), alone)


def test_shift_and_scale_of_the_rewards_do_not_matter():
    rewards = torch.rand(3, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(group_relative(5 * rewards - 2), group_relative(rewards))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="Sample more"):
        group_relative(torch.ones(3, 1))


def test_eps_must_be_positive():
    with pytest.raises(ValueError, match="Use 1e-6"):
        group_relative(torch.ones(3, 2), eps=0.0)

"""Weights of a packed update: literals, agreement with the means they stand for, refusals."""

import pytest
import torch

from copd.functional import Aggregation, token_weights

LENGTHS = torch.tensor([1, 3, 4])


def test_token_weights_are_uniform_over_the_tokens():
    torch.testing.assert_close(token_weights(LENGTHS, "token"), torch.full((8,), 1 / 8))


def test_sequence_weights_are_uniform_over_the_sequences():
    expected = torch.tensor([1 / 3] + [1 / 9] * 3 + [1 / 12] * 4)
    torch.testing.assert_close(token_weights(LENGTHS, "sequence"), expected)


@pytest.mark.parametrize("mode", ["token", "sequence"])
def test_weights_sum_to_one(mode: Aggregation):
    lengths = torch.randint(1, 50, (40,), generator=torch.Generator().manual_seed(0))
    assert float(token_weights(lengths, mode).sum()) == pytest.approx(1.0, abs=1e-6)


def test_modes_agree_on_equal_lengths():
    lengths = torch.full((5,), 7)
    torch.testing.assert_close(token_weights(lengths, "token"), token_weights(lengths, "sequence"))


def test_sequence_weights_give_the_mean_of_the_sequence_means():
    values = torch.arange(8.0)
    weighted = (token_weights(LENGTHS, "sequence") * values).sum()
    means = [0.0, (1 + 2 + 3) / 3, (4 + 5 + 6 + 7) / 4]
    assert float(weighted) == pytest.approx(sum(means) / 3)


def test_an_empty_sequence_is_refused():
    lengths = torch.tensor([2, 0])
    with pytest.raises(AssertionError, match="at least one token"):
        token_weights(lengths, "sequence")


@pytest.mark.parametrize("mode", ["token", "sequence"])
@pytest.mark.parametrize("sizes", [[8], [1, 7], [2, 2, 4], [1] * 8])
def test_micro_batching_leaves_the_gradient_unchanged(mode: Aggregation, sizes: list[int]):
    """Micro-batches here even cut through sequences."""
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    weights = token_weights(LENGTHS, mode)

    def gradient(splits: list[int]) -> torch.Tensor:
        parameter = torch.full((5,), 0.3, requires_grad=True)
        for rows, share in zip(inputs.split(splits), weights.split(splits), strict=True):
            (share * (rows @ parameter).square()).sum().backward()
        assert parameter.grad is not None
        return parameter.grad

    torch.testing.assert_close(gradient(sizes), gradient([8]))

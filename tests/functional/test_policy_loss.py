"""The clipped surrogate: both bounds, the dual clip, the on-policy gradient, extreme ratios."""

import math

import pytest
import torch
from torch import Tensor

from copd.functional import clipped_surrogate


def loss_and_gradient(
    ratios: list[float], advantages: list[float], *, dual_clip: float | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    logprobs = torch.tensor([math.log(ratio) for ratio in ratios], requires_grad=True)
    old = torch.zeros(len(ratios))
    loss, metrics = clipped_surrogate(logprobs, old, torch.tensor(advantages), dual_clip=dual_clip)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    return loss.detach(), gradient, metrics


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.25, 1.0, -1.25, -1.25),  # above 1 + clip_low, below 1 + clip_high
        (1.50, 1.0, -1.28, 0.0),
        (1.50, -1.0, 1.50, 1.50),
        (0.78, 1.0, -0.78, -0.78),
        (0.78, -1.0, 0.80, 0.0),  # below 1 - clip_low, above 1 - clip_high
        (0.90, -2.0, 1.80, 1.80),
        (0.10, 1.0, -0.10, -0.10),
        (3.00, 0.0, 0.0, 0.0),
    ],
)
def test_the_bounds_are_asymmetric(ratio: float, advantage: float, loss: float, gradient: float):
    got_loss, got_gradient, _ = loss_and_gradient([ratio], [advantage])
    assert float(got_loss) == pytest.approx(loss, abs=1e-6)
    assert float(got_gradient) == pytest.approx(gradient, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (5.0, -2.0, 6.0, 0.0),  # capped at -c A
        (2.0, -2.0, 4.0, 4.0),
        (5.0, 2.0, -2.56, 0.0),  # a positive advantage never meets the dual clip
        (0.5, -2.0, 1.6, 0.0),
    ],
)
def test_the_dual_clip_caps_negative_advantages(
    ratio: float, advantage: float, loss: float, gradient: float
):
    got_loss, got_gradient, _ = loss_and_gradient([ratio], [advantage], dual_clip=3.0)
    assert float(got_loss) == pytest.approx(loss, abs=1e-6)
    assert float(got_gradient) == pytest.approx(gradient, abs=1e-6)


def test_on_policy_the_gradient_is_reinforce():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, requires_grad=True)
    logprobs = logits.log_softmax(-1)[:, 2]
    advantages = torch.randn(6, generator=generator)
    loss, metrics = clipped_surrogate(logprobs, logprobs.detach(), advantages)
    torch.testing.assert_close(loss, -advantages)
    (surrogate,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (reinforce,) = torch.autograd.grad(-(advantages * logprobs).sum(), logits)
    torch.testing.assert_close(surrogate, reinforce)
    assert float(metrics["ratio_mean"]) == float(metrics["ratio_max"]) == 1.0


def test_metrics_count_what_each_bound_removed():
    ratios, advantages = [0.5, 0.5, 2.0, 2.0, 4.0, 1.0], [-1.0, 1.0, 1.0, 1.0, -1.0, 0.0]
    _, gradient, metrics = loss_and_gradient(ratios, advantages, dual_clip=3.0)
    assert {name: pytest.approx(float(value)) for name, value in metrics.items()} == {
        "clip_low_fraction": 1 / 6,
        "clip_high_fraction": 2 / 6,
        "dual_clip_fraction": 1 / 6,
        "ratio_mean": 10 / 6,
        "ratio_max": 4.0,
    }
    assert int((gradient == 0).sum()) == 1 + 2 + 1 + 1
    assert not any(value.requires_grad for value in metrics.values())


def test_only_the_policy_gets_a_gradient():
    logprobs, old, advantages = (torch.full((3,), -1.0, requires_grad=True) for _ in range(3))
    clipped_surrogate(logprobs, old, advantages)[0].sum().backward()
    assert logprobs.grad is not None
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("gap", [-1000.0, 1000.0])
def test_a_ratio_that_would_overflow_stays_finite(advantage: float, gap: float):
    logprobs = torch.tensor([gap], requires_grad=True)
    loss, _ = clipped_surrogate(logprobs, torch.zeros(1), torch.tensor([advantage]))
    loss.sum().backward()
    assert logprobs.grad is not None
    assert bool(loss.isfinite().all() and logprobs.grad.isfinite().all())


def test_any_shape_goes():
    flat = clipped_surrogate(torch.full((6,), -0.5), torch.full((6,), -1.0), torch.ones(6))[0]
    square = (torch.full((2, 3), -0.5), torch.full((2, 3), -1.0), torch.ones(2, 3))
    assert torch.equal(clipped_surrogate(*square)[0].flatten(), flat)


@pytest.mark.parametrize(
    ("bounds", "remedy"),
    [
        ({"clip_low": 1.0}, "use 0.2"),
        ({"clip_high": -0.1}, "use 0.28"),
        ({"dual_clip": 1.0}, "or None to leave it out"),
    ],
)
def test_senseless_bounds_are_refused(bounds: dict[str, float], remedy: str):
    with pytest.raises(ValueError, match=remedy):
        clipped_surrogate(torch.zeros(1), torch.zeros(1), torch.ones(1), **bounds)

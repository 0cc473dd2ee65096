"""Divergences: hand-computed values in both directions, estimators by enumeration, buckets."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from copd.functional import (
    entropy,
    forward_kl,
    jensen_shannon,
    kl_k1,
    kl_k2,
    kl_k3,
    reverse_kl,
    symmetric_kl,
    topk_buckets,
    topk_overlap,
)

STUDENT = torch.tensor([[0.7, 0.2, 0.1]]).log()
TEACHER = torch.tensor([[0.2, 0.3, 0.5]]).log()
REVERSE = 0.634897  # .7 ln 3.5 + .2 ln 2/3 + .1 ln .2
FORWARD = 0.675806  # .2 ln 2/7 + .3 ln 1.5 + .5 ln 5
JSD_HALF = 0.151358  # m = [.45, .25, .30]: (.154793 + .147923) / 2
JSD_TENTH = 0.058399  # m = [.65, .21, .14]: .1 * .507754 + .9 * .008471

Divergence = Callable[[Tensor, Tensor], Tensor]
DIVERGENCES: list[Divergence] = [
    reverse_kl,
    forward_kl,
    symmetric_kl,
    lambda student, teacher: jensen_shannon(student, teacher, beta=0.3),
]


def random_logprobs(
    rows: int, vocabulary: int, seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, vocabulary, generator=generator, dtype=dtype)).log_softmax(-1)


def teacher_topk(teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    top = teacher.topk(k, dim=-1)
    return top.values, top.indices


@pytest.mark.parametrize(
    ("divergence", "value"),
    [
        (reverse_kl, REVERSE),
        (forward_kl, FORWARD),
        (symmetric_kl, REVERSE + FORWARD),
        (lambda s, t: jensen_shannon(s, t, beta=0.5), JSD_HALF),
        (lambda s, t: jensen_shannon(s, t, beta=0.1), JSD_TENTH),
    ],
)
def test_hand_computed_values(divergence: Divergence, value: float):
    assert float(divergence(STUDENT, TEACHER)) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_zero_between_copies_and_positive_between_others(divergence: Divergence):
    student, teacher = random_logprobs(50, 9, 0), random_logprobs(50, 9, 1)
    assert float(divergence(student, student.clone()).abs().max()) < 1e-6
    assert float(divergence(student, teacher).min()) > 1e-3


def test_kl_between_copies_is_exactly_zero():
    student = random_logprobs(50, 9, 0)
    assert torch.equal(symmetric_kl(student, student.clone()), torch.zeros(50))


def test_symmetric_kl_is_symmetric_and_the_others_are_not():
    student, teacher = random_logprobs(5, 9, 0), random_logprobs(5, 9, 1)
    torch.testing.assert_close(symmetric_kl(student, teacher), symmetric_kl(teacher, student))
    torch.testing.assert_close(reverse_kl(student, teacher), forward_kl(teacher, student))
    assert float((reverse_kl(student, teacher) - forward_kl(student, teacher)).abs().min()) > 1e-2


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_jensen_shannon_swaps_with_its_beta(beta: float):
    student, teacher = random_logprobs(5, 9, 0), random_logprobs(5, 9, 1)
    swapped = jensen_shannon(teacher, student, beta=1 - beta)
    torch.testing.assert_close(jensen_shannon(student, teacher, beta=beta), swapped)
    assert float(jensen_shannon(student, teacher, beta=beta).max()) <= math.log(2)


def test_jensen_shannon_near_its_ends_is_a_small_kl():
    """Not close to the KL at the end: about beta times it."""
    near = 1e-3
    low = jensen_shannon(STUDENT.double(), TEACHER.double(), beta=near)
    high = jensen_shannon(STUDENT.double(), TEACHER.double(), beta=1 - near)
    assert float(low) == pytest.approx(near * FORWARD, rel=0.01)
    assert float(high) == pytest.approx(near * REVERSE, rel=0.01)
    assert JSD_TENTH * 10 < FORWARD


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_jensen_shannon_has_no_ends(beta: float):
    with pytest.raises(ValueError, match="Use the form `forward` for 0 and `reverse` for 1"):
        jensen_shannon(STUDENT, TEACHER, beta=beta)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_banned_tokens_contribute_nothing(divergence: Divergence):
    banned = torch.tensor([False, True, False, False, True, False])
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    student = logits.masked_fill(banned, -torch.inf).log_softmax(-1)
    other = random_logprobs(4, 6, 1)
    teacher = other.masked_fill(banned, -torch.inf).log_softmax(-1)
    value = divergence(student, teacher)
    torch.testing.assert_close(value, divergence(student[:, ~banned], teacher[:, ~banned]))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.equal(gradient[:, banned], torch.zeros(4, 2))
    assert bool((gradient[:, ~banned] != 0).all())


def test_a_token_banned_on_one_side_only_is_infinitely_far():
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    assert float(reverse_kl(STUDENT, teacher)) == math.inf
    assert float(forward_kl(STUDENT, teacher)) == pytest.approx(
        0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.2), abs=1e-6
    )
    assert float(jensen_shannon(STUDENT, teacher, beta=0.5)) < math.log(2)


def test_rounding_never_shows_below_zero_nor_stops_the_gradient():
    """Two nearly equal policies: the sum of positive and negative terms may round below zero."""
    student = random_logprobs(2000, 30, 0).requires_grad_()
    teacher = (student.detach() + 1e-4 * random_logprobs(2000, 30, 1)).log_softmax(-1)
    value = reverse_kl(student, teacher)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    lifted = value == 0
    assert bool((value >= 0).all())
    assert int(lifted.sum()) > 0
    assert bool((gradient[lifted].abs().sum(-1) > 0).all())


def test_entropy_of_known_distributions():
    uniform = torch.full((1, 8), 1 / 8).log()
    half = torch.tensor([[0.5, 0.5, 0.0]]).log()
    certain = torch.tensor([[1.0, 0.0, 0.0]]).log()
    assert float(entropy(uniform)) == pytest.approx(math.log(8))
    assert float(entropy(half)) == pytest.approx(math.log(2))
    assert float(entropy(certain)) == 0.0


def test_estimators_by_enumeration():
    policy, ref = (random_logprobs(1, 12, seed, torch.float64)[0] for seed in (0, 1))
    exact = float(reverse_kl(policy[None], ref[None]))
    mean = {k.__name__: float((policy.exp() * k(policy, ref)).sum()) for k in (kl_k1, kl_k2, kl_k3)}
    assert mean["kl_k1"] == pytest.approx(exact)
    assert mean["kl_k3"] == pytest.approx(exact)
    assert mean["kl_k2"] != pytest.approx(exact, rel=0.01)
    assert float(kl_k1(policy, ref).min()) < 0


def test_estimators_agree_to_second_order_near_the_reference():
    policy = random_logprobs(1, 12, 0, torch.float64)[0]
    ref = (policy + 1e-3 * random_logprobs(1, 12, 1)[0]).log_softmax(-1)
    exact = float(reverse_kl(policy[None], ref[None]))
    for estimator in (kl_k2, kl_k3):
        mean = float((policy.exp() * estimator(policy, ref)).sum())
        assert mean == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("estimator", [kl_k2, kl_k3])
def test_k2_and_k3_are_never_negative(estimator: Divergence):
    logprobs = random_logprobs(100, 30, 0)
    scales = torch.logspace(-8, 0, 100)[:, None]
    ref = logprobs + scales * random_logprobs(100, 30, 1)
    assert float(estimator(logprobs, ref).min()) >= 0
    assert torch.equal(estimator(logprobs, logprobs), torch.zeros(100, 30))


def test_which_gradient_each_estimator_has_in_expectation():
    """The known trap: k1 has none, k2 that of the reverse KL, k3 that of the forward KL."""
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits.requires_grad_()
    policy, ref = logits.log_softmax(-1), random_logprobs(1, 12, 1, torch.float64)[0]

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0]

    sampled = policy.detach().exp()
    reverse = gradient(reverse_kl(policy[None], ref[None]))
    forward = gradient(forward_kl(policy[None], ref[None]))
    torch.testing.assert_close(gradient(sampled * kl_k1(policy, ref)), torch.zeros_like(reverse))
    torch.testing.assert_close(gradient(sampled * kl_k2(policy, ref)), reverse)
    torch.testing.assert_close(gradient(sampled * kl_k3(policy, ref)), forward)


def test_estimators_keep_the_reference_out_of_the_gradient():
    logprobs, ref = (torch.full((3,), -1.0, requires_grad=True) for _ in range(2))
    for estimator in (kl_k1, kl_k2, kl_k3):
        estimator(logprobs, ref).sum().backward()
    assert ref.grad is None


def test_overlap_counts_shared_tokens_in_any_order():
    student = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]])
    teacher = torch.tensor([[4, 3, 2, 1], [9, 2, 8, 1], [1, 2, 3, 4]])
    assert topk_overlap(student, teacher).tolist() == [1.0, 0.5, 0.0]


def test_overlap_of_full_distributions():
    student, teacher = random_logprobs(20, 30, 0), random_logprobs(20, 30, 1)
    ids = [logprobs.topk(10).indices for logprobs in (student, teacher)]
    expected = [
        len(set(mine.tolist()) & set(theirs.tolist())) / 10
        for mine, theirs in zip(*ids, strict=True)
    ]
    torch.testing.assert_close(topk_overlap(*ids), torch.tensor(expected))


def test_buckets_by_hand():
    """The teacher's top one is token 2: [.1, .9] against [.5, .5]."""
    student, teacher = topk_buckets(STUDENT, *teacher_topk(TEACHER, 1))
    torch.testing.assert_close(student.exp(), torch.tensor([[0.1, 0.9]]))
    torch.testing.assert_close(teacher.exp(), torch.tensor([[0.5, 0.5]]))
    assert float(reverse_kl(student, teacher)) == pytest.approx(0.368064, abs=1e-5)
    assert float(forward_kl(student, teacher)) == pytest.approx(0.510826, abs=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_buckets_lower_bound_the_divergence_and_reach_it_at_the_full_vocabulary(
    divergence: Divergence,
):
    student, teacher = (random_logprobs(40, 12, seed, torch.float64) for seed in (0, 1))
    full = divergence(student, teacher)
    previous = torch.zeros(40, dtype=torch.float64)
    for k in range(1, 13):
        value = divergence(*topk_buckets(student, *teacher_topk(teacher, k)))
        assert bool((value >= previous - 1e-10).all())  # finer buckets see more
        assert bool((value <= full + 1e-10).all())
        if k < 10:
            assert bool((value < full).all())
        previous = value
    torch.testing.assert_close(previous, full)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 4, 11, 12])
def test_buckets_lose_little_in_float32(divergence: Divergence, k: int):
    """The teacher's tail is a difference from 1: its log is off by about 1e-7 over its mass."""
    student, teacher = (random_logprobs(40, 12, seed, torch.float64) for seed in (0, 1))
    exact = divergence(*topk_buckets(student, *teacher_topk(teacher, k)))
    short = divergence(*topk_buckets(student.float(), *teacher_topk(teacher.float(), k)))
    torch.testing.assert_close(short.double(), exact, atol=1e-3, rtol=1e-3)
    assert bool((short >= 0).all())


def test_both_bucket_distributions_sum_to_one():
    student, teacher = random_logprobs(40, 12, 0), random_logprobs(40, 12, 1)
    for buckets in topk_buckets(student, *teacher_topk(teacher, 4)):
        assert buckets.shape == (40, 5)
        torch.testing.assert_close(buckets.exp().sum(-1), torch.ones(40))


def test_the_students_tail_is_exact_where_one_minus_the_mass_is_not():
    student = torch.tensor([[0.0, -30.0, -31.0]]).log_softmax(-1)
    tail = topk_buckets(student, *teacher_topk(student, 1))[0][0, 1]
    assert float(tail) == pytest.approx(math.log(math.exp(-30) + math.exp(-31)), rel=1e-6)

"""Distillation signals and losses: gradients by enumeration, direction, the tail bucket."""

import math

import pytest
import torch
from torch import Tensor

from copd.functional import (
    DivergenceForm,
    chunked_divergence_loss,
    clipped_surrogate,
    control_variate,
    divergence_loss,
    domain_scale,
    forward_kl,
    full_logprobs,
    jensen_shannon,
    reverse_kl,
    reward_extrapolation,
    sampled_reverse_kl,
    topk_logprobs,
)

FORMS: list[DivergenceForm] = ["reverse", "forward", "jsd"]


def random_logits(*shape: int, seed: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def teacher_topk(teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    top = teacher.topk(k, dim=-1)
    return top.values, top.indices


def test_delta_is_teacher_minus_student_and_carries_no_gradient():
    student = torch.tensor([-1.0, -2.0], requires_grad=True)
    teacher = torch.tensor([-0.5, -5.0], requires_grad=True)
    delta = sampled_reverse_kl(student_logprobs=student, teacher_logprobs=teacher)
    assert delta.tolist() == [0.5, -3.0]
    assert not delta.requires_grad


def test_delta_is_clamped_on_both_sides():
    teacher = torch.tensor([-1.0, -9.0, -2.0])
    delta = sampled_reverse_kl(
        student_logprobs=torch.tensor([-9.0, -1.0, -3.0]), teacher_logprobs=teacher, clamp=2.0
    )
    assert delta.tolist() == [2.0, -2.0, 1.0]
    with pytest.raises(ValueError, match="Use None to leave it unbounded"):
        sampled_reverse_kl(student_logprobs=teacher, teacher_logprobs=teacher, clamp=0.0)


def expected_gradient(logits: Tensor, advantages: Tensor) -> Tensor:
    """The surrogate's gradient, averaged over every token the student could have sampled."""
    student = logits.log_softmax(-1)
    loss, _ = clipped_surrogate(student, student.detach(), advantages)
    return torch.autograd.grad((student.detach().exp() * loss).sum(), logits)[0]


@pytest.mark.parametrize("with_control_variate", [False, True])
def test_the_policy_gradient_on_delta_lowers_the_exact_reverse_kl(with_control_variate: bool):
    logits = random_logits(15, seed=0).double().requires_grad_()
    student, teacher = logits.log_softmax(-1), random_logits(15, seed=1).double().log_softmax(-1)
    exact = reverse_kl(student[None], teacher[None])
    (expected,) = torch.autograd.grad(exact.sum(), logits, retain_graph=True)
    signal = sampled_reverse_kl(student_logprobs=student, teacher_logprobs=teacher)
    if with_control_variate:
        signal = control_variate(signal, exact.expand(15))
    torch.testing.assert_close(expected_gradient(logits, signal), expected)
    assert not signal.requires_grad


def test_the_control_variate_centres_the_signal_and_lowers_its_variance():
    student, teacher = (random_logits(15, seed=s).log_softmax(-1) for s in (0, 1))
    delta = sampled_reverse_kl(student_logprobs=student, teacher_logprobs=teacher)
    kl = reverse_kl(student[None], teacher[None]).expand(15)
    centred = control_variate(delta, kl)
    p = student.exp()
    assert float((p * delta).sum()) == pytest.approx(-float(kl[0]), abs=1e-5)
    assert float((p * centred).sum()) == pytest.approx(0.0, abs=1e-5)
    assert float((p * centred.square()).sum()) < float((p * delta.square()).sum())


def test_extrapolation_goes_beyond_the_teacher_by_what_it_learned():
    delta = torch.tensor([0.5, -1.0])
    teacher, ref = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.0])

    def extrapolated(strength: float) -> list[float]:
        return reward_extrapolation(
            delta, teacher_logprobs=teacher, ref_logprobs=ref, strength=strength
        ).tolist()

    assert extrapolated(1.0) == [0.5, -1.0]
    assert extrapolated(1.5) == [1.5, -1.5]


def test_domain_scale_matches_deviations_and_keeps_signs():
    signal = torch.tensor([-1.0, 3.0, -1.0, 3.0])  # population deviation 2
    assert domain_scale(signal, 3.0).tolist() == [-1.5, 4.5, -1.5, 4.5]
    assert domain_scale(signal, 100.0).tolist() == [-4.0, 12.0, -4.0, 12.0]
    assert domain_scale(signal, 0.0).tolist() == [-0.25, 0.75, -0.25, 0.75]


@pytest.mark.parametrize("signal", [[0.5], [0.5, 0.5], [0.0, 0.0]])
def test_a_constant_signal_is_not_rescaled(signal: list[float]):
    assert domain_scale(torch.tensor(signal), 2.0).tolist() == signal


def test_domain_scale_refuses_a_crossed_range():
    with pytest.raises(ValueError, match=r"Use 0\.25 and 4"):
        domain_scale(torch.ones(2), 1.0, low=4.0, high=0.25)


@pytest.mark.parametrize(
    ("form", "value"), [("reverse", 0.634897), ("forward", 0.675806), ("jsd", 0.151358)]
)
def test_direction_by_hand_at_the_full_vocabulary(form: DivergenceForm, value: float):
    """Student [.7, .2, .1], teacher [.2, .3, .5]; the terms are spelled out in test_divergence."""
    student = torch.tensor([[0.7, 0.2, 0.1]]).log()
    teacher = torch.tensor([[0.2, 0.3, 0.5]]).log()
    loss = divergence_loss(student, *teacher_topk(teacher, 3), form=form)
    assert float(loss) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("form", "value"), [("reverse", 0.368064), ("forward", 0.510826), ("jsd", 0.101749)]
)
def test_direction_by_hand_on_one_token_and_a_tail(form: DivergenceForm, value: float):
    """Buckets [.1, .9] against [.5, .5]; for jsd m = [.3, .7]: (.116322 + .087177) / 2."""
    student = torch.tensor([[0.7, 0.2, 0.1]]).log()
    teacher = torch.tensor([[0.2, 0.3, 0.5]]).log()
    loss = divergence_loss(student, *teacher_topk(teacher, 1), form=form)
    assert float(loss) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_at_the_full_vocabulary_value_and_gradient_are_the_full_ones(form: DivergenceForm):
    logits = random_logits(6, 9, seed=0).requires_grad_()
    teacher = random_logits(6, 9, seed=1).log_softmax(-1)
    student = logits.log_softmax(-1)
    full = {
        "reverse": reverse_kl(student, teacher),
        "forward": forward_kl(student, teacher),
        "jsd": jensen_shannon(student, teacher, beta=0.3),
    }[form]
    loss = divergence_loss(student, *teacher_topk(teacher, 9), form=form, jsd_beta=0.3)
    torch.testing.assert_close(loss, full)
    (expected,) = torch.autograd.grad(full.sum(), logits, retain_graph=True)
    (got,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 3, 9])
def test_a_teacher_equal_to_the_student_costs_nothing_and_moves_nothing(
    form: DivergenceForm, k: int
):
    logits = random_logits(40, 9, seed=0).requires_grad_()
    student = logits.log_softmax(-1)
    loss = divergence_loss(student, *teacher_topk(student.detach(), k), form=form)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool((loss >= 0).all() and (loss < 1e-6).all())
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [2, 6, 7, 8, 9])
def test_banned_tokens_contribute_nothing_at_any_k(form: DivergenceForm, k: int):
    """Seven of nine tokens are allowed: from k = 7 on the tail holds banned ones only, or none."""
    banned = torch.tensor([0, 0, 1, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    logits = random_logits(6, 9, seed=0).requires_grad_()
    student = logits.masked_fill(banned, -torch.inf).log_softmax(-1)
    teacher = random_logits(6, 9, seed=1).masked_fill(banned, -torch.inf).log_softmax(-1)
    loss = divergence_loss(student, *teacher_topk(teacher, k), form=form)
    allowed = divergence_loss(
        student[:, ~banned], *teacher_topk(teacher[:, ~banned], min(k, 7)), form=form
    )
    torch.testing.assert_close(loss, allowed)
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad(allowed.sum(), logits)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(gradient[:, banned], torch.zeros(6, 2))
    assert bool((gradient[:, ~banned] != 0).all())


@pytest.mark.parametrize("form", FORMS)
def test_a_tail_below_float_resolution_stays_finite_and_bounded(form: DivergenceForm):
    """The teacher's top two hold all but 1e-13: as float32, all. The student disagrees."""
    logits = random_logits(8, 9, seed=0).requires_grad_()
    student = logits.log_softmax(-1)
    teacher = torch.tensor([0.0, -1.0] + [-32.0] * 7).log_softmax(-1).expand(8, 9)
    loss = divergence_loss(student, *teacher_topk(teacher, 2), form=form)
    full = divergence_loss(student, *teacher_topk(teacher, 9), form=form)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool((loss > 0).all() and (loss <= full + 1e-5).all())
    assert bool(gradient.isfinite().all() and (gradient != 0).all())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 4, 7])
def test_the_gradient_is_that_of_finite_differences(form: DivergenceForm, k: int):
    logits = random_logits(3, 7, seed=0).double().requires_grad_()
    top = teacher_topk(random_logits(3, 7, seed=1).double().log_softmax(-1), k)
    assert torch.autograd.gradcheck(
        lambda logits: divergence_loss(logits.log_softmax(-1), *top, form=form, jsd_beta=0.2),
        logits,
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_carries_no_gradient(form: DivergenceForm):
    teacher = random_logits(3, 7, seed=1).log_softmax(-1).requires_grad_()
    student = random_logits(3, 7, seed=0).log_softmax(-1).requires_grad_()
    divergence_loss(student, *teacher_topk(teacher, 4), form=form).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


def trained_student(teacher: Tensor, k: int, *, tail: bool) -> Tensor:
    """A student from uniform, after gradient descent on reverse KL over the teacher's top k."""
    logprobs, ids = teacher_topk(teacher, k)
    logits = torch.zeros_like(teacher, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(300):
        student = logits.log_softmax(-1)
        if tail:
            loss = divergence_loss(student, logprobs, ids, form="reverse").sum()
        else:
            head = student.gather(-1, ids)
            loss = (head.exp() * (head - logprobs)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits.detach().softmax(-1)


def test_the_tail_bucket_keeps_the_student_from_emptying_the_teachers_mass():
    """The trap: without the tail, reverse KL on the top k is lowest at mass * e^-1, or at none."""
    teacher = torch.tensor([[2.0, 1.5, 1.0, 0.0, 0.0, -1.0, -1.0, -1.0]]).log_softmax(-1)
    head = teacher.exp()[0, :3]
    student = trained_student(teacher, 3, tail=True)[0, :3]
    torch.testing.assert_close(student, head, atol=0.01, rtol=0)
    truncated = trained_student(teacher, 3, tail=False)[0, :3]
    assert float(truncated.sum()) < 0.5 * float(head.sum())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk_size", [1, 4, 64])
def test_chunks_change_neither_loss_nor_gradient(form: DivergenceForm, chunk_size: int):
    banned = torch.zeros(12, dtype=torch.bool).index_fill(0, torch.tensor([3]), True)
    hidden = random_logits(10, 5, seed=0).requires_grad_()
    head = random_logits(12, 5, seed=1).requires_grad_()
    top = topk_logprobs(random_logits(10, 5, seed=2), head.detach(), k=4, banned=banned)
    student = full_logprobs(hidden, head, banned=banned, temperature=0.9)
    plain = divergence_loss(student, *top, form=form, jsd_beta=0.3)
    chunked = chunked_divergence_loss(
        hidden,
        head,
        *top,
        form=form,
        jsd_beta=0.3,
        banned=banned,
        temperature=0.9,
        chunk_size=chunk_size,
    )
    torch.testing.assert_close(chunked, plain)
    weights = torch.linspace(0.5, 2, 10)
    expected = torch.autograd.grad((weights * plain).sum(), (hidden, head))
    got = torch.autograd.grad((weights * chunked).sum(), (hidden, head))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_chunks_keep_no_logits_for_the_backward_pass():
    hidden, head = random_logits(64, 5, seed=0).requires_grad_(), random_logits(90, 5, seed=1)
    top = topk_logprobs(hidden, head, k=4)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = chunked_divergence_loss(hidden, head, *top, form="reverse", chunk_size=16)
    assert max(saved, default=0) < 16 * 90
    assert bool(loss.isfinite().all())


def test_an_endless_jsd_beta_is_refused():
    student = random_logits(2, 4, seed=0).log_softmax(-1)
    with pytest.raises(ValueError, match="Use the form `forward` for 0"):
        divergence_loss(student, *teacher_topk(student, 2), form="jsd", jsd_beta=0.0)
    assert math.isfinite(
        float(divergence_loss(student, *teacher_topk(student, 2), form="jsd").sum())
    )

"""What a teacher tells a student. Knows distributions, not who holds them or which model made them.

Signals take the place of an advantage at the sampled token, carry no gradient and go through
`clipped_surrogate`. Direct losses are divergences of the student's whole distribution,
differentiated as they are.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from copd.functional.divergence import forward_kl, jensen_shannon, reverse_kl, topk_buckets
from copd.functional.logprobs import full_logprobs

DivergenceForm = Literal["reverse", "forward", "jsd"]


def sampled_reverse_kl(
    *,
    student_logprobs: Float[Tensor, "N"],
    teacher_logprobs: Float[Tensor, "N"],
    clamp: float | None = None,
) -> Float[Tensor, "N"]:
    """The paper's `delta_t = log pi_teacher(y_t) - log pi_student(y_t)`: on average *minus* KL.

    As a token advantage (times beta) it gives, in expectation over the student's tokens, the
    gradient that lowers KL(student || teacher). `clamp` bounds it to [-clamp, clamp]: few tokens
    then cannot dominate an update, at the price of that exactness.
    """
    delta = (teacher_logprobs - student_logprobs).detach()
    if clamp is None:
        return delta
    if clamp <= 0:
        raise ValueError(
            f"a log-ratio is clamped to [-clamp, clamp]: got clamp = {clamp}, expected more than "
            "0. Use None to leave it unbounded."
        )
    return delta.clamp(-clamp, clamp)


def control_variate(
    delta: Float[Tensor, "N"], reverse_kl: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """`delta_t + KL_t(student || teacher)`: the same expected gradient, mean zero, less variance.

    vOPD (arXiv 2605.07865). The KL is that of the whole distribution at position t; one over
    `topk_buckets` is as unbiased, since any value that does not depend on the sampled token is.
    """
    return (delta + reverse_kl).detach()


def reward_extrapolation(
    delta: Float[Tensor, "N"],
    *,
    teacher_logprobs: Float[Tensor, "N"],
    ref_logprobs: Float[Tensor, "N"],
    strength: float,
) -> Float[Tensor, "N"]:
    """`delta_t + (strength - 1) (log pi_teacher(y_t) - log pi_ref(y_t))`: go beyond the teacher.

    ExOPD (arXiv 2602.12125) with its lambda as `strength`; 1 is plain distillation. Far above 1,
    structured outputs break.
    """
    return (delta + (strength - 1.0) * (teacher_logprobs - ref_logprobs)).detach()


def domain_scale(
    signal: Float[Tensor, "N"], all_std: float, *, low: float = 0.25, high: float = 4.0
) -> Float[Tensor, "N"]:
    """One domain's signal times `clip(all_std / std(signal), low, high)`: none outshouts the rest.

    DN-MOPD's scale matching. Nothing is centred, so signs stay. Standard deviations are of the
    population, over the tokens of the whole update (`all_std`: of all domains together). A constant
    signal has no scale of its own and stays as it is.
    """
    if not 0 < low <= high:
        raise ValueError(
            f"a domain's scale lies in [low, high]: got [{low}, {high}], expected 0 < low <= high. "
            "Use 0.25 and 4."
        )
    std = float(signal.std(correction=0))
    if std == 0.0:
        return signal
    return signal * min(max(all_std / std, low), high)


def divergence_loss(
    student_logprobs: Float[Tensor, "M V"],
    teacher_topk_logprobs: Float[Tensor, "M K"],
    teacher_topk_ids: Int[Tensor, "M K"],
    *,
    form: DivergenceForm,
    jsd_beta: float = 0.5,
) -> Float[Tensor, "M"]:
    """A true divergence per token, on the teacher's top k and a tail bucket; the full one at K = V.

    `reverse` is KL(student || teacher), `forward` KL(teacher || student), `jsd` their generalised
    Jensen-Shannon mixture with `jsd_beta`, which is small near its ends: see `jensen_shannon`.
    """
    student, teacher = topk_buckets(student_logprobs, teacher_topk_logprobs, teacher_topk_ids)
    if form == "reverse":
        return reverse_kl(student, teacher)
    if form == "forward":
        return forward_kl(student, teacher)
    assert form == "jsd", f"unknown form {form!r}"
    return jensen_shannon(student, teacher, beta=jsd_beta)


def chunked_divergence_loss(
    hidden: Float[Tensor, "N D"],
    head: Float[Tensor, "V D"],
    teacher_topk_logprobs: Float[Tensor, "N K"],
    teacher_topk_ids: Int[Tensor, "N K"],
    *,
    form: DivergenceForm,
    jsd_beta: float = 0.5,
    banned: Bool[Tensor, "V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> Float[Tensor, "N"]:
    """`divergence_loss` from hidden states, with at most `chunk_size` rows of logits at a time.

    They are made again in the backward pass instead of kept, as in `token_logprobs`.
    """

    def loss(rows: Tensor, weight: Tensor, logprobs: Tensor, ids: Tensor) -> Tensor:
        student = full_logprobs(rows, weight, banned=banned, temperature=temperature)
        return divergence_loss(student, logprobs, ids, form=form, jsd_beta=jsd_beta)

    packed = (hidden, teacher_topk_logprobs, teacher_topk_ids)
    losses = []
    for rows, logprobs, ids in zip(*(part.split(chunk_size) for part in packed), strict=True):
        part = checkpoint(
            loss, rows, head, logprobs, ids, use_reentrant=False, preserve_rng_state=False
        )
        assert isinstance(part, Tensor)
        losses.append(part)
    return torch.cat(losses)

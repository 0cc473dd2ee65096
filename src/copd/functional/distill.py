"""On-policy distillation: signals for the clipped surrogate, and divergence losses.

A signal replaces the advantage of a sampled token in `clipped_surrogate` and carries no gradient. A
divergence loss compares whole distributions and is differentiated directly.
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
    """Compute the paper's signal `delta_t = log pi_teacher(y_t) - log pi_student(y_t)`.

    From arXiv 2604.27083. Its mean over the student's tokens is -KL(student || teacher). As a token
    advantage, times beta, it has in expectation the gradient that lowers this KL.

    Args:
        student_logprobs: Log-probabilities of the sampled tokens under the student, shape `N`.
        teacher_logprobs: The same under the teacher, shape `N`.
        clamp: Bound on `|delta_t|`, in nats. Few tokens then cannot dominate an update, but the
            gradient is not exactly that of the KL.

    Returns:
        The signal, shape `N`, without gradient.

    Raises:
        ValueError: If `clamp` is not positive.

    Example:
        >>> student, teacher = torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -5.0])
        >>> sampled_reverse_kl(student_logprobs=student, teacher_logprobs=teacher)
        tensor([ 0.5000, -3.0000])
    """
    delta = (teacher_logprobs - student_logprobs).detach()
    if clamp is None:
        return delta
    if clamp <= 0:
        raise ValueError(
            f"A log-ratio is clamped to [-clamp, clamp]: got clamp = {clamp}, expected more than "
            "0. Use None to leave it unbounded."
        )
    return delta.clamp(-clamp, clamp)


def control_variate(
    delta: Float[Tensor, "N"], reverse_kl: Float[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """Centre the signal: `delta_t + KL_t(student || teacher)`, of vOPD (arXiv 2605.07865).

    The result has mean zero, the same expected gradient and less variance.

    Args:
        delta: The signal of `sampled_reverse_kl`, shape `N`.
        reverse_kl: KL(student || teacher) at each position, shape `N`, in nats. A KL over
            `topk_buckets` is unbiased too, as it does not depend on the sampled token.

    Returns:
        The centred signal, shape `N`, without gradient.
    """
    return (delta + reverse_kl).detach()


def reward_extrapolation(
    delta: Float[Tensor, "N"],
    *,
    teacher_logprobs: Float[Tensor, "N"],
    ref_logprobs: Float[Tensor, "N"],
    strength: float,
) -> Float[Tensor, "N"]:
    """Extrapolate: `delta_t + (strength - 1) (log pi_teacher(y_t) - log pi_ref(y_t))`.

    From ExOPD (arXiv 2602.12125), whose lambda is `strength`: it moves the student beyond the
    teacher, away from the reference. Far above 1, structured outputs break.

    Args:
        delta: The signal of `sampled_reverse_kl`, shape `N`.
        teacher_logprobs: Log-probabilities of the sampled tokens under the teacher, shape `N`.
        ref_logprobs: The same under the reference, shape `N`.
        strength: 1 is plain distillation.

    Returns:
        The extrapolated signal, shape `N`, without gradient.
    """
    return (delta + (strength - 1.0) * (teacher_logprobs - ref_logprobs)).detach()


def domain_scale(
    signal: Float[Tensor, "N"], all_std: float, *, low: float = 0.25, high: float = 4.0
) -> Float[Tensor, "N"]:
    """Scale one domain's signal by `clip(all_std / std(signal), low, high)`.

    The scale matching of DN-MOPD: no domain dominates an update by the scale of its signal. It does
    not centre, so signs stay. A constant signal stays as it is.

    Args:
        signal: The domain's signal at all tokens of the update, shape `N`.
        all_std: Population standard deviation of the signals of all domains together.
        low: Smallest factor.
        high: Largest factor.

    Returns:
        The scaled signal, shape `N`.

    Raises:
        ValueError: If not `0 < low <= high`.
    """
    if not 0 < low <= high:
        raise ValueError(
            f"A domain's scale lies in [low, high]: got [{low}, {high}], expected 0 < low <= high. "
            "Use 0.25 and 4."
        )
    std = float(signal.std(correction=0))
    return signal if std == 0.0 else signal * min(max(all_std / std, low), high)


def divergence_loss(
    student_logprobs: Float[Tensor, "M V"],
    teacher_topk_logprobs: Float[Tensor, "M K"],
    teacher_topk_ids: Int[Tensor, "M K"],
    *,
    form: DivergenceForm,
    jsd_beta: float = 0.5,
) -> Float[Tensor, "M"]:
    """Compute a divergence over the teacher's top k and a tail bucket; the full one at K = V.

    See `topk_buckets` for the tail, and `jensen_shannon` for "jsd".

    Args:
        student_logprobs: Log-probabilities of the student, shape `M V`.
        teacher_topk_logprobs: The teacher's highest log-probabilities, shape `M K`; no gradient.
        teacher_topk_ids: Their tokens, shape `M K`.
        form: "reverse" is KL(student || teacher), "forward" KL(teacher || student), "jsd" the
            generalised Jensen-Shannon divergence.
        jsd_beta: Weight of the teacher in the mixture of "jsd", between 0 and 1.

    Returns:
        The divergence per token, shape `M`, in nats.
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
    """Compute `divergence_loss` from hidden states, without the whole matrix of logits.

    At most `chunk_size` rows of logits exist at a time; the backward pass computes them again.

    Args:
        hidden: Hidden states that predict the tokens, shape `N D`.
        head: Vocabulary head, shape `V D`.
        teacher_topk_logprobs: The teacher's highest log-probabilities, shape `N K`; no gradient.
        teacher_topk_ids: Their tokens, shape `N K`.
        form: As in `divergence_loss`.
        jsd_beta: As in `divergence_loss`.
        banned: True for tokens that cannot be sampled, shape `V`.
        temperature: Divides the logits.
        chunk_size: Rows of logits at a time.

    Returns:
        The divergence per token, shape `N`, in nats.
    """

    def loss(rows: Tensor, weight: Tensor, logprobs: Tensor, ids: Tensor) -> Tensor:
        student = full_logprobs(rows, weight, banned=banned, temperature=temperature)
        return divergence_loss(student, logprobs, ids, form=form, jsd_beta=jsd_beta)

    packed = (hidden, teacher_topk_logprobs, teacher_topk_ids)
    chunks = zip(*(tensor.split(chunk_size) for tensor in packed), strict=True)
    losses = [
        checkpoint(loss, rows, head, *top, use_reentrant=False, preserve_rng_state=False)
        for rows, *top in chunks
    ]
    return torch.cat(losses)

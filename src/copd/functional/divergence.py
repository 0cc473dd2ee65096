"""How far apart two policies are at the same positions. Knows no models and no losses.

Exact forms take normalised log-probabilities over a vocabulary, or over the buckets of
`topk_buckets`, student first. A token that is -inf on both sides is banned and contributes exactly
zero, to values and gradients. One that only the second distribution of a KL lacks makes it
infinite, as it is.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def kl_k1(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """`-r`, `r = log ref(y) - log policy(y)`: unbiased for KL(policy || ref), often negative.

    At `y ~ policy`; Schulman, "Approximating KL divergence" (2020), for all three. As a loss its
    expected gradient is zero; in a policy gradient `r` is the reward.
    """
    return logprobs - ref_logprobs.detach()


def kl_k2(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """`r^2 / 2`: biased, never negative; its expected gradient is that of KL(policy || ref)."""
    return (ref_logprobs.detach() - logprobs).square() / 2


def kl_k3(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """`e^r - 1 - r`: unbiased, never negative; its expected gradient: that of KL(ref || policy)."""
    log_ratio = ref_logprobs.detach() - logprobs
    return torch.expm1(log_ratio) - log_ratio


def reverse_kl(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"]
) -> Float[Tensor, "M"]:
    """KL(student || teacher): large where the student goes and the teacher would not."""
    return _kl(student_logprobs, teacher_logprobs)


def forward_kl(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"]
) -> Float[Tensor, "M"]:
    """KL(teacher || student): large where the teacher goes and the student would not."""
    return _kl(teacher_logprobs, student_logprobs)


def symmetric_kl(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"]
) -> Float[Tensor, "M"]:
    """KL(student || teacher) + KL(teacher || student), not halved."""
    return _kl(student_logprobs, teacher_logprobs) + _kl(teacher_logprobs, student_logprobs)


def jensen_shannon(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"], *, beta: float
) -> Float[Tensor, "M"]:
    """`beta KL(q || m) + (1 - beta) KL(p || m)` with `m = beta q + (1 - beta) p`.

    GKD's generalised form (arXiv 2306.13649) in TRL's convention: p the student, q the teacher. It
    vanishes at both ends, so near them it is small: about `beta KL(q || p)` near 0 and `(1 - beta)
    KL(p || q)` near 1, a tenth at 0.1 and 0.9.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"Jensen-Shannon needs 0 < jsd_beta < 1: got {beta}. "
            "Use the form `forward` for 0 and `reverse` for 1."
        )
    # Where both are -inf, logaddexp has a NaN gradient; neither KL looks at the mixture there.
    absent = student_logprobs.isneginf() & teacher_logprobs.isneginf()
    mixture = torch.logaddexp(
        teacher_logprobs + math.log(beta),
        student_logprobs.masked_fill(absent, 0.0) + math.log1p(-beta),
    )
    return beta * _kl(teacher_logprobs, mixture) + (1.0 - beta) * _kl(student_logprobs, mixture)


def entropy(logprobs: Float[Tensor, "M V"]) -> Float[Tensor, "M"]:
    """`-sum p log p`, in nats."""
    surprise = -logprobs.masked_fill(logprobs.isneginf(), 0.0)
    return (logprobs.exp() * surprise).sum(dim=-1)


def topk_overlap(
    student_topk_ids: Int[Tensor, "M K"], teacher_topk_ids: Int[Tensor, "M K"]
) -> Float[Tensor, "M"]:
    """The paper's `|Top_k(student) & Top_k(teacher)| / k`, on the student's own tokens; k = 10.

    The ids come from `topk_logprobs`, or from `topk` on a full distribution; their order does not
    matter.
    """
    shared = student_topk_ids[:, :, None] == teacher_topk_ids[:, None, :]
    return shared.any(dim=-1).float().mean(dim=-1)


def topk_buckets(
    student_logprobs: Float[Tensor, "M V"],
    teacher_topk_logprobs: Float[Tensor, "M K"],
    teacher_topk_ids: Int[Tensor, "M K"],
) -> tuple[Float[Tensor, "M K+1"], Float[Tensor, "M K+1"]]:
    """Both distributions over the teacher's top k, one bucket each, and a tail bucket for the rest.

    Any divergence of the pair is one in its own right: never negative, at most the full divergence,
    equal to it at K = V. Without the tail, what lies outside would escape the loss, and emptying
    the teacher's top k would minimise a reverse KL.

    The teacher's part carries no gradient. Its tail, known only as what its top k leaves of 1, is
    not taken below float resolution; the student's is summed from its tokens. A tail without
    tokens, or of banned ones alone, is -inf on both sides.
    """
    student_head = student_logprobs.gather(-1, teacher_topk_ids.long())
    teacher_head = teacher_topk_logprobs.detach().to(student_head.dtype)
    num_allowed = (~student_logprobs.isneginf()).sum(dim=-1, keepdim=True)
    is_empty = num_allowed == (~student_head.isneginf()).sum(dim=-1, keepdim=True)
    covered = torch.where(is_empty, 0.0, -torch.inf).to(student_head.dtype).expand_as(student_head)
    rest = student_logprobs.scatter(-1, teacher_topk_ids.long(), covered)
    student_tail = rest.logsumexp(dim=-1, keepdim=True)
    resolution = torch.finfo(teacher_head.dtype).eps
    log_mass = teacher_head.logsumexp(dim=-1, keepdim=True).clamp(max=-resolution)
    teacher_tail = (-torch.expm1(log_mass)).log()
    return (
        torch.cat([student_head, student_tail.masked_fill(is_empty, -torch.inf)], dim=-1),
        torch.cat([teacher_head, teacher_tail.masked_fill(is_empty, -torch.inf)], dim=-1),
    )


def _kl(p: Float[Tensor, "M V"], q: Float[Tensor, "M V"]) -> Float[Tensor, "M"]:
    """`sum p (log p - log q)` where p > 0; rounding below zero is lifted, its gradient kept."""
    log_ratio = (p - q).masked_fill(p.isneginf(), 0.0)
    kl = (p.exp() * log_ratio).sum(dim=-1)
    return torch.where(kl < 0, kl - kl.detach(), kl)

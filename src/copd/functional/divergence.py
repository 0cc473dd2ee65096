"""Divergences between two policies at the same positions.

Exact divergences take normalised log-probabilities over a vocabulary, or over the buckets of
`topk_buckets`. A token at -inf on both sides is banned: it contributes exactly zero to values and
gradients. A token at -inf only in the second distribution of a KL makes that KL infinite.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def kl_k1(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Estimate KL(policy || ref) by `-r` with `r = log ref(y) - log policy(y)`, for `y ~ policy`.

    Unbiased, often negative (Schulman, "Approximating KL divergence", 2020). As a loss its expected
    gradient is zero; in a policy gradient, use `r` as the reward.

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy, any shape.
        ref_logprobs: The same under the reference; without gradient.

    Returns:
        The estimate per token, in nats.
    """
    return logprobs - ref_logprobs.detach()


def kl_k2(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Estimate KL(policy || ref) by `r^2 / 2`; see `kl_k1`.

    Biased, never negative; its expected gradient is that of KL(policy || ref).

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy, any shape.
        ref_logprobs: The same under the reference; without gradient.

    Returns:
        The estimate per token, in nats.
    """
    return (ref_logprobs.detach() - logprobs).square() / 2


def kl_k3(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Estimate KL(policy || ref) by `e^r - 1 - r`; see `kl_k1`.

    Unbiased, never negative; its expected gradient is that of KL(ref || policy).

    Args:
        logprobs: Log-probabilities of the sampled tokens under the policy, any shape.
        ref_logprobs: The same under the reference; without gradient.

    Returns:
        The estimate per token, in nats.
    """
    log_ratio = ref_logprobs.detach() - logprobs
    return torch.expm1(log_ratio) - log_ratio


def reverse_kl(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"]
) -> Float[Tensor, "M"]:
    """Compute KL(student || teacher): large where the student is likely and the teacher is not.

    Args:
        student_logprobs: Log-probabilities of the student, shape `M V`.
        teacher_logprobs: Log-probabilities of the teacher, shape `M V`.

    Returns:
        The KL per position, shape `M`, in nats.

    Example:
        >>> reverse_kl(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
        tensor([0.1438])
    """
    return _kl(student_logprobs, teacher_logprobs)


def forward_kl(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"]
) -> Float[Tensor, "M"]:
    """Compute KL(teacher || student): large where the teacher is likely and the student is not.

    Args:
        student_logprobs: Log-probabilities of the student, shape `M V`.
        teacher_logprobs: Log-probabilities of the teacher, shape `M V`.

    Returns:
        The KL per position, shape `M`, in nats.
    """
    return _kl(teacher_logprobs, student_logprobs)


def symmetric_kl(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"]
) -> Float[Tensor, "M"]:
    """Compute KL(student || teacher) + KL(teacher || student), not halved.

    Args:
        student_logprobs: Log-probabilities of the student, shape `M V`.
        teacher_logprobs: Log-probabilities of the teacher, shape `M V`.

    Returns:
        The sum per position, shape `M`, in nats.
    """
    return _kl(student_logprobs, teacher_logprobs) + _kl(teacher_logprobs, student_logprobs)


def jensen_shannon(
    student_logprobs: Float[Tensor, "M V"], teacher_logprobs: Float[Tensor, "M V"], *, beta: float
) -> Float[Tensor, "M"]:
    """Compute `beta KL(q || m) + (1 - beta) KL(p || m)` with `m = beta q + (1 - beta) p`.

    The generalised Jensen-Shannon divergence of GKD (arXiv 2306.13649) in TRL's convention: p is
    the student, q the teacher. It vanishes at both ends: about `beta KL(q || p)` near 0 and
    `(1 - beta) KL(p || q)` near 1.

    Args:
        student_logprobs: Log-probabilities of the student, shape `M V`.
        teacher_logprobs: Log-probabilities of the teacher, shape `M V`.
        beta: Weight of the teacher in the mixture, between 0 and 1.

    Returns:
        The divergence per position, shape `M`, in nats.

    Raises:
        ValueError: If `beta` is not between 0 and 1.
    """
    if not 0.0 < beta < 1.0:
        raise ValueError(
            f"Jensen-Shannon needs 0 < jsd_beta < 1: got {beta}. "
            "Use the form `forward` for 0 and `reverse` for 1."
        )
    # Where both are -inf, logaddexp has a NaN gradient; both KLs ignore the mixture there.
    absent = student_logprobs.isneginf() & teacher_logprobs.isneginf()
    mixture = torch.logaddexp(
        teacher_logprobs + math.log(beta),
        student_logprobs.masked_fill(absent, 0.0) + math.log1p(-beta),
    )
    return beta * _kl(teacher_logprobs, mixture) + (1.0 - beta) * _kl(student_logprobs, mixture)


def entropy(logprobs: Float[Tensor, "M V"]) -> Float[Tensor, "M"]:
    """Compute the entropy `-sum p log p`.

    Args:
        logprobs: Log-probabilities, shape `M V`.

    Returns:
        The entropy per position, shape `M`, in nats.
    """
    surprise = -logprobs.masked_fill(logprobs.isneginf(), 0.0)
    return (logprobs.exp() * surprise).sum(dim=-1)


def topk_overlap(
    student_topk_ids: Int[Tensor, "M K"], teacher_topk_ids: Int[Tensor, "M K"]
) -> Float[Tensor, "M"]:
    """Compute the paper's top-k overlap, `|Top_k(student) & Top_k(teacher)| / k`.

    The paper (arXiv 2604.27083) takes k = 10, on the student's own tokens.

    Args:
        student_topk_ids: The student's k most probable tokens in any order, shape `M K`.
        teacher_topk_ids: The teacher's, shape `M K`.

    Returns:
        The share of common tokens per position, shape `M`, in [0, 1].
    """
    shared = student_topk_ids[:, :, None] == teacher_topk_ids[:, None, :]
    return shared.any(dim=-1).float().mean(dim=-1)


def topk_buckets(
    student_logprobs: Float[Tensor, "M V"],
    teacher_topk_logprobs: Float[Tensor, "M K"],
    teacher_topk_ids: Int[Tensor, "M K"],
) -> tuple[Float[Tensor, "M K+1"], Float[Tensor, "M K+1"]]:
    """Coarsen both distributions to the teacher's top k and one tail bucket for the other tokens.

    A divergence of the two results is never negative, at most the full divergence, and equal to it
    at K = V. Without the tail, a reverse KL over the top k is lowest where the student gives these
    tokens little probability or none.

    The teacher's tail is one minus its top k, at least float resolution; the student's is summed
    over its tokens. A tail without tokens, or with banned tokens only, is -inf on both sides.

    Args:
        student_logprobs: Log-probabilities of the student, shape `M V`.
        teacher_topk_logprobs: The teacher's highest log-probabilities, not renormalised, shape
            `M K`; without gradient.
        teacher_topk_ids: Their tokens, shape `M K`.

    Returns:
        Log-probabilities of student and teacher over the buckets, shape `M K+1` each; the tail is
        last.
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
    """Sum `p (log p - log q)` where p > 0; a sum that rounds below zero is 0, with its gradient."""
    log_ratio = (p - q).masked_fill(p.isneginf(), 0.0)
    kl = (p.exp() * log_ratio).sum(dim=-1)
    return torch.where(kl < 0, kl - kl.detach(), kl)

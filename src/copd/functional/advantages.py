"""Advantages of rollouts relative to their group."""

from jaxtyping import Float
from torch import Tensor


def group_relative(
    rewards: Float[Tensor, "P G"], *, eps: float = 1e-6, scale: bool = True
) -> Float[Tensor, "P G"]:
    """Compute group-relative advantages, `A_i = (r_i - mean r) / (std r + eps)`.

    The advantage of the paper (arXiv 2604.27083) and of GRPO (arXiv 2402.03300), with the sample
    standard deviation. A group of equal rewards gets exactly zero.

    Args:
        rewards: Rewards of G rollouts for each of P problems, shape `P G`.
        eps: Added to the standard deviation.
        scale: Divide by the standard deviation; False only centres, as Dr. GRPO (2503.20783).

    Returns:
        Advantages, shape `P G`.

    Raises:
        ValueError: If groups have fewer than two rollouts or `eps` is not positive.

    Example:
        >>> group_relative(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), scale=False)
        tensor([[ 0.7500, -0.2500, -0.2500, -0.2500]])
    """
    num_rollouts = rewards.shape[1]
    if num_rollouts < 2:
        raise ValueError(
            "A group-relative advantage compares the rollouts of one problem: "
            f"got groups of {num_rollouts}, expected at least 2. Sample more per prompt."
        )
    if eps <= 0:
        raise ValueError(
            f"eps keeps groups of equal rewards finite: got {eps}, expected more than 0. Use 1e-6."
        )
    # The mean of equal rewards may round; relative to the first of the group it is exactly 0.
    relative = rewards - rewards[:, :1]
    centred = relative - relative.mean(dim=1, keepdim=True)
    return centred / (relative.std(dim=1, keepdim=True) + eps) if scale else centred

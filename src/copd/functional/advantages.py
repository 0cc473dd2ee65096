"""From rewards to advantages, relative to a group. Knows no tokens."""

from jaxtyping import Float
from torch import Tensor


def group_relative(
    rewards: Float[Tensor, "P G"], *, eps: float = 1e-6, scale: bool = True
) -> Float[Tensor, "P G"]:
    """`A_i = (r_i - mean r) / (std r + eps)`: how a rollout did relative to its group.

    The paper's group-relative advantage (GRPO, arXiv 2402.03300) with the sample standard
    deviation. `scale=False` leaves the division out (Dr. GRPO, arXiv 2503.20783). A group of equal
    rewards earns exactly zero: rewards are taken relative to the first of their group before the
    mean, which alone would leave a rounding error for `eps` to blow up.
    """
    num_rollouts = rewards.shape[1]
    if num_rollouts < 2:
        raise ValueError(
            "a group-relative advantage compares rollouts of one problem: "
            f"got groups of {num_rollouts}, expected at least 2. Sample more per prompt."
        )
    if eps <= 0:
        raise ValueError(
            f"eps keeps groups of equal rewards finite: got {eps}, expected more than 0. Use 1e-6."
        )
    relative = rewards - rewards[:, :1]
    centred = relative - relative.mean(dim=1, keepdim=True)
    if not scale:
        return centred
    return centred / (relative.std(dim=1, keepdim=True) + eps)

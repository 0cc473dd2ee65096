"""In which precision a policy's passes run."""

from typing import Literal

import torch

from copd.policy import Policy

Precision = Literal["float32", "bfloat16"]


def autocast(policy: Policy, precision: Precision) -> torch.autocast:
    """Passes in bfloat16 where asked; the weights stay float32."""
    enabled = precision == "bfloat16"
    return torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=enabled)

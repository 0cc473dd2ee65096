"""In which precision a policy's passes run."""

import os
from typing import Literal

import torch

from copd.policy import Policy

Precision = Literal["float32", "bfloat16"]

NUM_KERNELS = 64
"""Products in bfloat16 that stay compiled: as many as a step has shapes of."""


def autocast(policy: Policy, precision: Precision) -> torch.autocast:
    """Passes in bfloat16 where asked; the weights stay float32."""
    enabled = precision == "bfloat16"
    return torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=enabled)


def keep_few_kernels() -> None:
    """Bounds what a process on a CPU holds of compiled products in bfloat16.

    oneDNN compiles one for every shape, and torch's wrapper of it keeps another copy: 0.58 MB, up
    to 1,024 times, and completions make new shapes with every step. Both read these variables at
    their first product; what the user has set stays.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(NUM_KERNELS))

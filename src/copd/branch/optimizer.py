"""The optimizer of a branch, and its update."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from copd.branch.fsdp import full_tensor
from copd.config import OptimizerConfig


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Build AdamW over the trainable parameters; over none for a frozen branch.

    The fused form makes one pass over weights, gradients and moments, where torch's default on a
    CPU makes ten.
    """
    trained = [{"params": [p for p in parameters.values() if p.requires_grad]}]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.type == "adamw":
        return torch.optim.AdamW(trained, **settings, fused=True)
    return _adamw_8bit()(trained, **settings)


def update(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, num_updates: int
) -> dict[str, float]:
    """Clip gradients and step.

    Args:
        optimizer: An optimizer from `build_optimizer`.
        config: Its settings. Warmup is linear: update n of the first `warmup_steps` has the
            fraction `n / warmup_steps` of the learning rate.
        num_updates: The number of this update, from 1.

    Returns:
        The gradient norm before clipping, and the learning rate of this update.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    warmup = min(1.0, num_updates / config.warmup_steps) if config.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * warmup
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # frees memory for the other branches
    return {
        "update/grad_norm": float(full_tensor(norm)),
        "update/learning_rate": config.learning_rate * warmup,
    }


def _adamw_8bit() -> Any:
    try:
        return import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ValueError(
            'optimizer.type = "adamw_8bit" needs the package bitsandbytes: got none. '
            'Install it with `pip install bitsandbytes`, or use "adamw".'
        ) from error

"""The optimizer a configuration names, and its update. Knows parameters by name, no model."""

from __future__ import annotations

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
    """AdamW over what is trainable: over nothing, for a branch that is only asked.

    In one pass over weights, gradients and moments, where torch's own default on a CPU makes ten.
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
    """Clips and updates, for the `num_updates`-th time; the norm is that before clipping."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    warm = min(1.0, num_updates / config.warmup_steps) if config.warmup_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * warm
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # other branches need the memory meanwhile
    return {
        "update/grad_norm": float(full_tensor(norm)),
        "update/learning_rate": config.learning_rate * warm,
    }


def _adamw_8bit() -> Any:
    try:
        return import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ValueError(
            'optimizer.type = "adamw_8bit" needs the package bitsandbytes: got none. '
            'Install it with `pip install bitsandbytes`, or use "adamw".'
        ) from error

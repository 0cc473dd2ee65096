"""The optimizer a configuration names. Knows parameters by name, no model."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

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


def _adamw_8bit() -> Any:
    try:
        return import_module("bitsandbytes.optim").AdamW8bit
    except ImportError as error:
        raise ValueError(
            'optimizer.type = "adamw_8bit" needs the package bitsandbytes: got none. '
            'Install it with `pip install bitsandbytes`, or use "adamw".'
        ) from error

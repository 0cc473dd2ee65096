"""A branch's weights and optimizer state as safetensors files, strictly loaded.

Nothing is unpickled.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from copd.branch.fsdp import full_tensor, shard_like

Parameters = Mapping[str, nn.Parameter]


def save_state(parameters: Parameters, optimizer: dict[str, Tensor], folder: Path) -> None:
    """A new folder with weights and what `optimizer_state` found."""
    folder.mkdir(parents=True)
    save_weights(parameters, folder / "model.safetensors")
    save_optimizer(optimizer, folder / "optimizer.safetensors")


def save_weights(parameters: Parameters, path: Path) -> None:
    """Every parameter under its name."""
    write_tensors({name: p.detach().cpu() for name, p in parameters.items()}, path)


@torch.no_grad()
def load_weights(parameters: Parameters, source: Path | Mapping[str, Tensor]) -> None:
    """Copies weights into the parameters, or into a rank's shares of them.

    A name or shape that does not match is an error.
    """
    weights = load_file(source) if isinstance(source, Path) else source
    _require_same_names(parameters, weights, source)
    for name, parameter in parameters.items():
        if parameter.shape != weights[name].shape:
            raise ValueError(
                f"weights do not fit the model: {name} is {tuple(weights[name].shape)}, "
                f"expected {tuple(parameter.shape)}. Use weights made from the same base model."
            )
        parameter.copy_(shard_like(parameter, weights[name]))


def optimizer_state(
    parameters: Parameters, optimizer: torch.optim.Optimizer, num_updates: int
) -> dict[str, Tensor]:
    """What it keeps per parameter (AdamW: two moments), whole, and how many updates there were.

    A parameter without a gradient in some of them, such as a vision tower in a stage of text alone,
    has seen fewer; it is told how many, because AdamW corrects its moments by that. All ranks of a
    branch must ask.
    """
    tensors = {"num_updates": torch.tensor(num_updates)}
    for name, parameter in parameters.items():
        for key, kept in optimizer.state.get(parameter, {}).items():
            if key != "step":
                tensors[f"{key}/{name}"] = full_tensor(kept).cpu()
            elif int(kept) != num_updates:
                tensors[f"step/{name}"] = torch.tensor(int(kept))
    return tensors


def save_optimizer(state: dict[str, Tensor], path: Path) -> None:
    """Writes what `optimizer_state` found."""
    write_tensors(state, path)


def load_optimizer(parameters: Parameters, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """The inverse of `save_optimizer`; returns the number of updates."""
    tensors = load_file(path)
    num_updates = int(tensors.pop("num_updates"))
    optimizer.state.clear()
    for key, kept in tensors.items():
        moment, _, name = key.partition("/")
        if name not in parameters:
            raise ValueError(
                f"{path} holds optimizer state of unknown parameters: got {name}. "
                "Resume with the model the run was started with."
            )
        state = optimizer.state[parameters[name]]
        device = parameters[name].device
        if moment == "step":
            state["step"] = _steps(optimizer, int(kept), device)
            continue
        state.setdefault("step", _steps(optimizer, num_updates, device))
        state[moment] = shard_like(parameters[name], kept.to(device))
    return num_updates


def _steps(
    optimizer: torch.optim.Optimizer, num_updates: int, device: torch.device
) -> Tensor | int:
    """As torch counts them, or bitsandbytes."""
    if type(optimizer) is not torch.optim.AdamW:
        return num_updates
    return torch.tensor(float(num_updates), device=device)


def _require_same_names(
    parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: object
) -> None:
    missing, unknown = sorted(parameters.keys() - weights), sorted(weights.keys() - parameters)
    if missing or unknown:
        where = source if isinstance(source, Path) else "the given weights"
        raise ValueError(
            f"{where} does not fit the model: missing {missing[:3]}, unknown {unknown[:3]}. "
            "Use weights made from the same base model."
        )


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes and syncs; a full disk is an `OSError` like that of any other file."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    with path.open("rb") as file:
        os.fsync(file.fileno())

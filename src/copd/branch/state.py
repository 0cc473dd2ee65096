"""A branch's weights and optimizer state as safetensors files. Nothing is unpickled."""

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
    """Write weights and the result of `optimizer_state` into a new folder."""
    folder.mkdir(parents=True)
    save_weights(parameters, folder / "model.safetensors")
    save_optimizer(optimizer, folder / "optimizer.safetensors")


def save_weights(parameters: Parameters, path: Path) -> None:
    """Write every parameter under its name."""
    write_tensors({name: p.detach().cpu() for name, p in parameters.items()}, path)


@torch.no_grad()
def load_weights(parameters: Parameters, source: Path | Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters, or into a rank's shards of them.

    Args:
        parameters: The parameters, by name.
        source: A safetensors file, or whole tensors by name.

    Raises:
        ValueError: If a name or a shape does not match.
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
    """Return the optimizer's state, unsharded, by `key/parameter`; all ranks must call this.

    AdamW keeps two moments per parameter. A parameter that had no gradient in some updates, such
    as a vision tower in a stage of text alone, has its own number of steps, by which AdamW corrects
    its moments. The number is stored where it is not `num_updates`.
    """
    tensors = {"num_updates": torch.tensor(num_updates)}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if key != "step":
                tensors[f"{key}/{name}"] = full_tensor(value).cpu()
            elif int(value) != num_updates:
                tensors[f"step/{name}"] = torch.tensor(int(value))
    return tensors


def save_optimizer(state: dict[str, Tensor], path: Path) -> None:
    """Write the result of `optimizer_state`."""
    write_tensors(state, path)


def load_optimizer(parameters: Parameters, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Load what `save_optimizer` wrote, and return the number of updates."""
    tensors = load_file(path)
    num_updates = int(tensors.pop("num_updates"))
    optimizer.state.clear()
    for key, value in tensors.items():
        moment, _, name = key.partition("/")
        if name not in parameters:
            raise ValueError(
                f"{path} holds optimizer state of unknown parameters: got {name}. "
                "Resume with the model the run was started with."
            )
        state = optimizer.state[parameters[name]]
        device = parameters[name].device
        if moment == "step":
            state["step"] = _steps(optimizer, int(value), device)
            continue
        state.setdefault("step", _steps(optimizer, num_updates, device))
        state[moment] = shard_like(parameters[name], value.to(device))
    return num_updates


def _steps(
    optimizer: torch.optim.Optimizer, num_updates: int, device: torch.device
) -> Tensor | int:
    """Return a number of steps in the form that torch, or bitsandbytes, keeps."""
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
    """Write and sync a safetensors file; a full disk raises `OSError`, as for any other file."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if "os error 28" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""A model's parameters spread over the ranks of a branch by FSDP2. Knows no loss and no optimizer.

Between methods a rank holds its share of every parameter, and of what the optimizer keeps for it.
While a method works every rank holds the whole model, and its passes need nobody else: ranks may run
any number of them, of any length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor


class ShardedModel:
    """This rank's shares; `parameters` are what an optimizer updates, by name.

    The model is one unit of FSDP: units are gathered by their own forward passes, and here nobody
    calls the whole one's, so no pass has a hook.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self._names = list(model.state_dict())
        self._mesh = mesh
        self._model = fully_shard(model, mesh=mesh)
        self.parameters = dict(model.named_parameters())

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Here the model's parameters are whole, and a copy: what is written to them is lost."""
        self._model.unshard()
        try:
            yield
        finally:
            self._model.reshard()

    def collect_gradients(self) -> None:
        """The sum of all ranks' gradients, each rank's share of it; only where they are whole.

        A parameter that no rank has touched gets none, as in one process.
        """
        full_tensor = dict(self._named_parameters())
        touched = torch.tensor(
            [p.grad is not None for p in full_tensor.values()], dtype=torch.int32
        )
        touched = touched.to(self._mesh.device_type)
        torch.distributed.all_reduce(
            touched, op=torch.distributed.ReduceOp.MAX, group=self._mesh.get_group()
        )
        for (name, parameter), is_touched in zip(
            full_tensor.items(), touched.tolist(), strict=True
        ):
            share = self.parameters[name]
            share.grad = self._share_of_sum(parameter, share) if is_touched else None
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The state dict of the whole model; its own would be one of shares."""
        module = cast(nn.Module, self._model)
        tensors: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
        tensors |= dict(module.named_parameters(remove_duplicate=False))
        return {name: tensors[name].detach() for name in self._names}

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return cast(nn.Module, self._model).named_parameters()

    def _share_of_sum(self, parameter: Tensor, share: Tensor) -> Tensor:
        assert isinstance(share, DTensor)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        summands = DTensor.from_local(gradient, self._mesh, [Partial("sum")], run_check=False)
        return summands.redistribute(placements=share.placements)


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor whose shares the ranks hold, on every one of them; all must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Of a tensor that every rank has, what belongs to its share of a parameter."""
    if not isinstance(parameter, DTensor):
        return tensor
    there = tensor.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)

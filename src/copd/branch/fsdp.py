"""A model whose parameters are sharded over the ranks of a branch by FSDP2.

Between the methods of a branch each rank holds its shard of every parameter and of the optimizer's
state. During a method each rank holds the whole model, and its passes need no other rank: ranks may
run any number of passes, of any length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor


class ShardedModel:
    """This rank's shards; `parameters` are what an optimizer updates, by name.

    The model is a single FSDP unit. Units are gathered by hooks of their own forward pass, and
    copd calls submodules instead, so no pass runs a hook.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh) -> None:
        self._names = list(model.state_dict())
        self._mesh = mesh
        self._model = fully_shard(model, mesh=mesh)
        self.parameters = dict(model.named_parameters())

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Gather the whole parameters for a while. They are copies: writing to them is lost."""
        self._model.unshard()
        try:
            yield
        finally:
            self._model.reshard()

    def collect_gradients(self) -> None:
        """Sum the gradients of all ranks into each rank's shards, inside `unsharded`.

        A parameter that no rank has touched gets no gradient, as in one process.
        """
        gathered = dict(self._named_parameters())
        touched = torch.tensor([p.grad is not None for p in gathered.values()], dtype=torch.int32)
        touched = touched.to(self._mesh.device_type)
        torch.distributed.all_reduce(
            touched, op=torch.distributed.ReduceOp.MAX, group=self._mesh.get_group()
        )
        for (name, parameter), is_touched in zip(gathered.items(), touched.tolist(), strict=True):
            shard = self.parameters[name]
            shard.grad = self._shard_of_sum(parameter, shard) if is_touched else None
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Return the state dict of the whole model, inside `unsharded`."""
        module = cast(nn.Module, self._model)
        tensors: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
        tensors |= dict(module.named_parameters(remove_duplicate=False))
        return {name: tensors[name].detach() for name in self._names}

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return cast(nn.Module, self._model).named_parameters()

    def _shard_of_sum(self, parameter: Tensor, shard: Tensor) -> Tensor:
        assert isinstance(shard, DTensor)
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        summands = DTensor.from_local(gradient, self._mesh, [Partial("sum")], run_check=False)
        return summands.redistribute(placements=shard.placements)


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor on every rank; all ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Return the shard of a whole tensor that belongs to this rank's shard of a parameter."""
    if not isinstance(parameter, DTensor):
        return tensor
    there = tensor.to(parameter.device)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)

"""How the ranks of a branch find each other with torch.distributed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from copd.branch.ranks import Ranks

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Device to backend; Python objects travel over the CPU."""


@dataclass(frozen=True)
class RankSpec:
    """What one process needs to join the process group of its branch."""

    rank: int
    size: int
    address: str
    port: int
    group: str
    """Key prefix in the store, unique to one start of one branch."""
    time_limit: float
    """Seconds a rank waits for the others."""

    def join(self, device: str) -> Ranks:
        """Wait for the other ranks; possible once per process."""
        limit = timedelta(seconds=self.time_limit)
        store = dist.TCPStore(self.address, self.port, timeout=limit)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(
            _BACKENDS[device],
            store=dist.PrefixStore(self.group, store),  # pyright: ignore[reportPrivateImportUsage]
            rank=self.rank,
            world_size=self.size,
            timeout=limit,
        )
        return Ranks(self.rank, self.size, init_device_mesh(device, (self.size,)))


class Rendezvous:
    """The store through which ranks meet; hosts it and gives out rank specs."""

    def __init__(self, address: str, size: int, time_limit: float) -> None:
        self._address, self._size, self._time_limit = address, size, time_limit
        self._num_groups = 0
        self._store = None
        if size > 1:
            self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]

    def rank_specs(self) -> Sequence[RankSpec | None]:
        """Return one spec per process of a new branch; a single process needs none."""
        if self._store is None:
            return [None]
        self._num_groups += 1
        where = self._address, self._store.port, str(self._num_groups), self._time_limit
        return [RankSpec(rank, self._size, *where) for rank in range(self._size)]

"""How the ranks of a branch find each other, by torch.distributed. Knows no branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from copd.branch.ranks import Ranks

_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""By device; plain values go over the CPU."""


@dataclass(frozen=True)
class RankSpec:
    """One rank's place among those of its branch."""

    rank: int
    size: int
    address: str
    port: int
    meeting: str
    """No two branches, nor two lives of one, have the same."""
    time_limit: float
    """Seconds a rank waits for the others."""

    def take(self, device: str) -> Ranks:
        """Waits for the others; once in the life of a process."""
        limit = timedelta(seconds=self.time_limit)
        store = dist.TCPStore(self.address, self.port, timeout=limit)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(
            _BACKENDS[device],
            store=dist.PrefixStore(self.meeting, store),  # pyright: ignore[reportPrivateImportUsage]
            rank=self.rank,
            world_size=self.size,
            timeout=limit,
        )
        return Ranks(self.rank, self.size, init_device_mesh(device, (self.size,)))


class Rendezvous:
    """Gives out seats, and holds the store through which those who have one meet."""

    def __init__(self, address: str, size: int, time_limit: float) -> None:
        self._address, self._size, self._time_limit = address, size, time_limit
        self._num_meetings = 0
        self._store = None
        if size > 1:
            self._store = dist.TCPStore(address, 0, is_master=True, wait_for_workers=False)  # pyright: ignore[reportPrivateImportUsage]

    def seats(self) -> Sequence[RankSpec | None]:
        """One for each process of a new branch; none is needed to be alone."""
        if self._store is None:
            return [None]
        self._num_meetings += 1
        meeting, port = str(self._num_meetings), self._store.port
        return [
            RankSpec(rank, self._size, self._address, port, meeting, self._time_limit)
            for rank in range(self._size)
        ]

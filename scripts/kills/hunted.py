"""Branches whose processes and machines die at drawn moments, and what became of it."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.cluster_utils import Cluster

from copd.branch import Branch
from copd.config import Config, RayEngineConfig
from copd.engine import BranchLost
from copd.engine.ray import RayEngine
from copd.run.checkpoint import saved_steps
from scripts.kills.drawn import RECOVERY, Kill
from scripts.kills.processes import children, destroy, is_host, machines, send

RECOVERY_VERBS = ("arrive", "restore")
"""The first of them waits for branches that come to life."""

STORE_BYTES = 2**27


@dataclass
class Death:
    """What became of a kill; times in seconds."""

    kill: Kill
    process: int
    branch: str
    during: list[str]
    """What branches, the dead one or others, were asked at that moment."""
    moment: float
    noticed: float | None = None
    """From the death to the first branch that is known to be lost."""
    back: float | None = None
    """From the death until the run goes on."""


class Hunted(RayEngine):
    """Branches on a cluster whose machines and processes die at drawn moments."""

    def __init__(
        self, config: Config, settings: RayEngineConfig, cluster: Cluster, kills: Sequence[Kill]
    ) -> None:
        super().__init__(config, settings)
        self._cluster, self._num_machines = cluster, len(machines())
        self._checkpoints = config.output_dir / "checkpoints"
        self._due, self._busy = list(kills), Counter[str]()
        self._lock = threading.Lock()
        self._builders: list[threading.Thread] = []
        self._building = threading.Lock()
        self.deaths: list[Death] = []
        self.losses: list[str] = []

    def call(
        self, method: Callable[[Branch, Any], Any], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        name = method.__name__
        stage = RECOVERY if name in RECOVERY_VERBS else name
        with self._lock:
            self._busy[name] += 1
            if stage != RECOVERY:
                self._note_back()
            if self._due and self._due[0].stage == stage and self._due[0].step <= self._step():
                self._strike_later(self._due.pop(0))
        try:
            return super().call(method, inputs)
        except BranchLost as lost:
            with self._lock:
                self._note_loss(str(lost))
            raise
        finally:
            with self._lock:
                self._busy[name] -= 1

    def clear(self) -> None:
        """Dead machines are replaced, as whoever runs a cluster would do; nobody waits for it."""
        self._builders.append(threading.Thread(target=self._replace_machines))
        self._builders[-1].start()
        super().clear()

    def close(self) -> None:
        """Processes that were stopped do not notice that everything else has ended."""
        for builder in self._builders:
            builder.join()
        super().close()
        stopped = [death.process for death in self.deaths if death.kill.kind == "hang"]
        send(signal.SIGKILL, stopped)

    def _step(self) -> int:
        return saved_steps(self._checkpoints) + 1

    def _strike_later(self, kill: Kill) -> None:
        timer = threading.Timer(kill.delay, self._strike, [kill])
        timer.daemon = True  # the run may end before there is a victim
        timer.start()

    def _strike(self, kill: Kill) -> None:
        """Chooses the victim among the branches' processes, and says what is going on."""
        while not (victims := self._victims()):
            time.sleep(0.05)
        process = victims[int(kill.share * len(victims))]
        places = {where[0].split()[1]: name for name, where in self._places.items()}
        with self._lock:
            during = sorted(name for name, count in self._busy.items() if count)
            branch = places.get(str(process), "one that comes to life")
            self.deaths.append(Death(kill, process, branch, during, time.monotonic()))
        destroy(kill.kind, process)
        print(f"{kill.kind} of {branch} in step {self._step()}, while {', '.join(during)}")

    def _victims(self) -> list[int]:
        """Processes of branches that live; while they come to life, of any."""
        hosts = [pid for raylet in machines() for pid in children(raylet) if is_host(pid)]
        known = {where[0].split()[1] for where in self._places.values()}
        return sorted(pid for pid in hosts if str(pid) in known) or sorted(hosts)

    def _note_loss(self, said: str) -> None:
        if said not in self.losses:  # everybody who was waiting is told of it
            self.losses.append(said)
        for death in self.deaths:
            if death.noticed is None:
                death.noticed = round(time.monotonic() - death.moment, 1)

    def _note_back(self) -> None:
        for death in self.deaths:
            if death.noticed is not None and death.back is None:
                death.back = round(time.monotonic() - death.moment, 1)

    def _replace_machines(self) -> None:
        with self._building:
            for node in list(self._cluster.worker_nodes):
                if node.dead_processes():
                    self._cluster.remove_node(node, allow_graceful=False)
            for _ in range(self._num_machines - len(machines())):
                add_machine(self._cluster)


def add_machine(cluster: Cluster) -> None:
    """Ray gives a raylet 30 s to start; on a busy machine it comes later, and nothing is lost."""
    try:
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    except Exception as error:  # Ray raises no narrower one
        print(f"a simulated machine takes its time: {error}")

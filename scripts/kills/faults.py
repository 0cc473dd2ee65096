"""An engine whose processes and machines are killed at drawn moments."""

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
from scripts.kills.processes import children, destroy, is_host, machines, send
from scripts.kills.schedule import RECOVERY, Kill

RECOVERY_METHODS = ("ping", "restore")
"""The first one waits for branches that start."""

STORE_BYTES = 2**27


@dataclass
class Death:
    """A kill that has happened, with times in seconds."""

    kill: Kill
    process: int
    branch: str
    during: list[str]
    """The calls of any branches that ran at that moment."""
    moment: float
    noticed: float | None = None
    """From the death until a branch counts as lost."""
    back: float | None = None
    """From the death until the run continues."""


class FaultyEngine(RayEngine):
    """Branches on a cluster whose processes and machines are killed at drawn moments."""

    def __init__(
        self, config: Config, settings: RayEngineConfig, cluster: Cluster, kills: Sequence[Kill]
    ) -> None:
        super().__init__(config, settings)
        self._cluster, self._num_machines = cluster, len(machines())
        self._checkpoints = config.output_dir / "checkpoints"
        self._due, self._running = list(kills), Counter[str]()
        self._lock = threading.Lock()
        self._builders: list[threading.Thread] = []
        self._building = threading.Lock()
        self.deaths: list[Death] = []
        self.losses: list[str] = []

    def call(
        self, method: Callable[[Branch, Any], Any], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        name = method.__name__
        stage = RECOVERY if name in RECOVERY_METHODS else name
        with self._lock:
            self._running[name] += 1
            if stage != RECOVERY:
                self._note_back()
            if self._due and self._due[0].stage == stage and self._due[0].step <= self._step():
                kill = self._due.pop(0)
                timer = threading.Timer(kill.delay, self._strike, [kill])
                timer.daemon = True  # the run may end before there is a victim
                timer.start()
        try:
            return super().call(method, inputs)
        except BranchLost as lost:
            with self._lock:
                self._note_loss(str(lost))
            raise
        finally:
            with self._lock:
                self._running[name] -= 1

    def clear(self) -> None:
        """Replace dead machines in the background, as the operator of a cluster would."""
        self._builders.append(threading.Thread(target=self._replace_machines))
        self._builders[-1].start()
        super().clear()

    def close(self) -> None:
        """Also kill the stopped processes, which do not notice that everything else has ended."""
        for builder in self._builders:
            builder.join()
        super().close()
        stopped = [death.process for death in self.deaths if death.kill.kind == "hang"]
        send(signal.SIGKILL, stopped)

    def _step(self) -> int:
        return saved_steps(self._checkpoints) + 1

    def _branches(self) -> dict[int, str]:
        """Return the branch of every process."""
        return {int(where[0].split()[1]): name for name, where in self._locations.items()}

    def _strike(self, kill: Kill) -> None:
        while not (victims := self._victims()):
            time.sleep(0.05)
        process = victims[int(kill.share * len(victims))]
        branches = self._branches()
        with self._lock:
            during = sorted(name for name, count in self._running.items() if count)
            branch = branches.get(process, "one that starts")
            self.deaths.append(Death(kill, process, branch, during, time.monotonic()))
        destroy(kill.kind, process)
        print(f"{kill.kind} of {branch} in step {self._step()}, during {', '.join(during)}")

    def _victims(self) -> list[int]:
        """Return the processes of running branches, or of all while branches start."""
        hosts = [pid for raylet in machines() for pid in children(raylet) if is_host(pid)]
        known = self._branches()
        return sorted(pid for pid in hosts if pid in known) or sorted(hosts)

    def _note_loss(self, message: str) -> None:
        if message not in self.losses:  # every waiting call raises it
            self.losses.append(message)
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
    """Add a machine; on a busy computer it may start only after the 30 s that Ray waits for it."""
    try:
        cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
    except Exception as error:  # Ray raises no narrower one
        print(f"a simulated machine starts slowly: {error}")

"""The engine that runs each branch in processes of its own, as Ray actors, on any machines."""

import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from copd.branch import Branch
from copd.config import Config, RayEngineConfig
from copd.engine.actor import Actor, Failure, pack
from copd.engine.base import BranchLost, Input, Output
from copd.engine.host import Host
from copd.engine.rendezvous import Rendezvous

STORE_BYTES = 2**28
"""Object store of a cluster that is started here; Ray spills the rest to disk."""

CLOSE_SECONDS = 60.0
"""How long `close` waits for calls to notice that their branches have ended."""


class RayEngine:
    """One actor per rank of a branch; a call goes to all actors at once.

    A cluster that was started here ends with `close`, or with this process.
    """

    is_parallel = True

    def __init__(self, config: Config, settings: RayEngineConfig) -> None:
        if config.model.device == "cuda" and not settings.num_gpus:
            raise ValueError(
                'model.device is "cuda" and branches reserve no GPU: got engine.num_gpus = 0. '
                "Set it to 1, or to a fraction where branches share one."
            )
        self._config, self._settings = config, settings
        self._joined = join(settings)
        self._is_private = self._joined and settings.address is None
        self._actors: dict[str, list[Any]] = {}
        self._starting: dict[str, list[Any]] = {}
        """Branch to the pending results of `Host.spawn`."""
        self._locations: dict[str, list[str]] = {}
        """Branch to a description of the process of each rank."""
        self._num_calls, self._changed = 0, threading.Condition()
        self._loss: str | None = None
        address, size = ray.util.get_node_ip_address(), settings.ranks_per_branch
        self._rendezvous = Rendezvous(address, size, settings.time_limit)

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        """Start a branch and return at once; branches start in parallel, the next `call` waits."""
        assert name not in self._actors, f"branch {name!r} exists already"
        self._actors[name], self._starting[name] = [], []
        for rank_spec in self._rendezvous.rank_specs():
            actor = self._new_actor()
            arguments = (self._config, Path.cwd(), name, model, frozen, rank_spec)
            self._actors[name].append(actor)
            self._starting[name].append(actor.serve.remote(pack((Host.spawn, arguments))))

    def drop(self, name: str) -> None:
        for actor in self._actors.pop(name):
            ray.kill(actor)
        self._starting.pop(name, None)
        self._locations.pop(name, None)

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        with self._changed:
            self._num_calls += 1
        try:
            self._wait_started(list(inputs))
            refs = {}
            for name, value in inputs.items():
                message = pack((Host.apply, (method, {name: value})))
                refs[name] = [actor.serve.remote(message) for actor in self._actors[name]]
            outputs = self._collect(refs, method.__name__, self._settings.time_limit)
        finally:
            with self._changed:
                self._num_calls -= 1
                self._changed.notify_all()
        return {name: of_ranks[0][name] for name, of_ranks in outputs.items()}

    def clear(self) -> None:
        for name in list(self._actors):
            self.drop(name)
        self._loss = None

    def close(self) -> None:
        self.clear()
        with self._changed:  # a call after Ray has shut down would start it again
            self._changed.wait_for(lambda: not self._num_calls, CLOSE_SECONDS)
        if self._joined:
            ray.shutdown()

    def _all_actors(self) -> list[Any]:
        return [actor for actors in self._actors.values() for actor in actors]

    def _new_actor(self) -> Any:
        settings = self._settings
        threads = str(settings.num_threads)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self._is_private:
            self._require_gpus()
            variables["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if os.path.isabs(p))
        options = ray.remote(Actor).options(
            num_cpus=0 if self._is_private else settings.num_cpus,
            num_gpus=settings.num_gpus,
            max_restarts=0,
            runtime_env={"env_vars": variables},
        )
        return options.remote()

    def _require_gpus(self) -> None:
        """Raise if the GPUs of this machine do not suffice; a private cluster gets no others."""
        available = ray.cluster_resources().get("GPU", 0.0)
        num_actors = len(self._all_actors()) + 1
        if num_actors * self._settings.num_gpus > available:
            raise ValueError(
                f"{num_actors} processes of branches do not fit on the GPUs of this machine: got "
                f"engine.num_gpus = {self._settings.num_gpus:g} for each, expected at most "
                f"{available:g} together. Lower it; a fraction puts several on one."
            )

    def _wait_started(self, names: Sequence[str]) -> None:
        refs = {name: self._starting.pop(name) for name in names if name in self._starting}
        self._locations |= self._collect(refs, "spawn", self._settings.start_limit)

    def _collect(
        self, refs: Mapping[str, Sequence[Any]], method: str, limit: float
    ) -> dict[str, list[Any]]:
        """Wait for the results of all ranks; raise the first loss, or else the first error."""
        ranks = {ref: (name, i) for name, own in refs.items() for i, ref in enumerate(own)}
        pending, results = list(ranks), {}
        deadline = time.monotonic() + limit
        while pending:
            ready, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._lose(*ranks[pending[0]], method, _timeout_reason(limit, method))
            try:
                results[ready[0]] = pickle.loads(ray.get(ready[0]))
            except RayError as error:
                raise self._lose(*ranks[ready[0]], method, _death_reason(error)) from None
        for ref in ranks:
            if isinstance(results[ref], Failure):
                raise results[ref].error
        return {name: [results[ref] for ref in own] for name, own in refs.items()}

    def _lose(self, name: str, rank: int, method: str, reason: str) -> BranchLost:
        """Kill all actors, so that no call waits and none writes later, and return the error.

        Other threads fail for it, too; they get the first loss, the cause of theirs.
        """
        with self._changed:
            if self._loss is None:
                locations = self._locations.get(name, ["no process yet"] * (rank + 1))
                where = (
                    locations[rank] if len(locations) == 1 else f"rank {rank}, {locations[rank]}"
                )
                self._loss = f"branch {name!r} ({where}) was lost in {method}: {reason}."
                for actor in self._all_actors():
                    ray.kill(actor)
            return BranchLost(self._loss)


def join(settings: RayEngineConfig) -> bool:
    """Connect to a cluster, or start one on this machine that ends with this process.

    Returns False if the program is connected already, and leaves the connection as it is.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports without consent
    options: dict[str, Any] = {"address": settings.address}
    if not settings.address:
        options = {
            "address": "local",  # otherwise Ray joins any cluster on this machine
            "num_cpus": 0,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
        }
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise ValueError(
            f"engine.address must be that of a Ray cluster that runs: got {settings.address!r} "
            f"({error}). Start one with `ray start --head`, or leave the address out."
        ) from None
    return True


def _timeout_reason(limit: float, method: str) -> str:
    if method == "spawn":
        total = ray.cluster_resources()
        return (
            f"it found no place, or did not load its model, within engine.start_limit = {limit:g} "
            f"s, on a cluster of {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
        )
    return f"it did not answer within {limit:g} s"


def _death_reason(error: RayError) -> str:
    """Return the sentence of Ray that gives the reason, else its first one.

    Lines that begin with a tab describe the actor.
    """
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("\t")]
    reason = next((line for line in lines if " because " in line), lines[0])
    return reason.split(". ")[0].rstrip(".: ")

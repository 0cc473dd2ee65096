"""Every branch in processes of its own, as Ray actors: side by side, on one machine or on many.

Beside actor.py the only file that imports ray. Knows no recipe, and of a branch only where it is.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from copd.branch import Branch
from copd.config import Config, RayEngineConfig
from copd.engine.actor import Actor, Failure, pack
from copd.engine.base import BranchLost
from copd.engine.host import Host
from copd.engine.rendezvous import Rendezvous

Input = TypeVar("Input")
Output = TypeVar("Output")

STORE_BYTES = 2**28
"""Object store of a cluster that is started here; the rest is spilled to disk."""

END_SECONDS = 60.0
"""How long a branch may take to be forgotten, and what asks it to notice the end."""


class RayEngine:
    """One actor per rank of a branch; `call` asks all of them at once and waits for all.

    A cluster that was started here ends with `close`, or with this process. The processes of
    dropped branches are kept for the next ones, unless they are ranks of several.
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
        self._hosts: dict[str, list[Any]] = {}
        self._coming: dict[str, list[Any]] = {}
        self._places: dict[str, list[str]] = {}
        self._idle: list[Any] = []
        self._num_asking, self._asked = 0, threading.Condition()
        self._loss: str | None = None
        address, size = ray.util.get_node_ip_address(), settings.ranks_per_branch
        self._lobby = Rendezvous(address, size, settings.time_limit)

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        """Returns at once: branches come to life side by side, and the next `call` waits."""
        assert name not in self._hosts, f"branch {name!r} exists already"
        self._hosts[name], self._coming[name] = [], []
        for seat in self._lobby.seats():
            host = self._idle.pop() if self._idle else self._new_host()
            wanted = (self._config, Path.cwd(), name, model, frozen, seat)
            self._hosts[name].append(host)
            self._coming[name].append(_ask(host, Host.spawn, *wanted))

    def drop(self, name: str) -> None:
        self._arrive([name])
        answers = [_ask(host, Host.clear) for host in self._hosts[name]]
        self._collect({name: answers}, "drop", END_SECONDS)
        for host in self._hosts.pop(name):
            self._keep(host)

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        with self._asking():
            self._arrive(list(inputs))
            asked = {}
            for name, value in inputs.items():
                message = pack((Host.apply, (method, {name: value})))
                asked[name] = [host.serve.remote(message) for host in self._hosts[name]]
            answers = self._collect(asked, method.__name__, self._settings.time_limit)
        return {name: of_ranks[0][name] for name, of_ranks in answers.items()}

    def clear(self) -> None:
        """Ends all processes: what they are doing is of no use to anybody, and some may be on a
        machine that is about to go."""
        self._end()
        self._loss = None

    def close(self) -> None:
        self._end()
        with self._asked:  # a thread that asks once Ray is gone would start it again
            self._asked.wait_for(lambda: not self._num_asking, END_SECONDS)
        if self._joined:
            ray.shutdown()

    def _end(self) -> None:
        for host in (*self._all_hosts(), *self._idle):
            ray.kill(host)
        self._hosts, self._coming, self._places, self._idle = {}, {}, {}, []

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with self._asked:
            self._num_asking += 1
        try:
            yield
        finally:
            with self._asked:
                self._num_asking -= 1
                self._asked.notify_all()

    def _all_hosts(self) -> list[Any]:
        return [host for hosts in self._hosts.values() for host in hosts]

    def _keep(self, host: Any) -> None:
        """For the next branch; a rank is tied to the others of its branch and ends with them."""
        if self._settings.ranks_per_branch == 1:
            self._idle.append(host)
        else:
            ray.kill(host)

    def _new_host(self) -> Any:
        settings = self._settings
        threads = str(settings.num_threads)
        variables = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self._is_private:
            self._require_gpus()
            variables["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if os.path.isabs(p))
        return (
            ray.remote(Actor)
            .options(
                num_cpus=0 if self._is_private else settings.num_cpus,
                num_gpus=settings.num_gpus,
                max_restarts=0,
                runtime_env={"env_vars": variables},
            )
            .remote()
        )

    def _require_gpus(self) -> None:
        """On this machine alone no GPU can come later, so nobody should wait for one."""
        available = ray.cluster_resources().get("GPU", 0.0)
        num_hosts = len(self._all_hosts()) + len(self._idle) + 1
        if num_hosts * self._settings.num_gpus > available:
            raise ValueError(
                f"{num_hosts} processes of branches do not fit on the GPUs of this machine: got "
                f"engine.num_gpus = {self._settings.num_gpus:g} for each, expected at most "
                f"{available:g} together. Lower it; a fraction puts several on one."
            )

    def _arrive(self, names: Sequence[str]) -> None:
        """Waits for those that were spawned and have not answered yet."""
        coming = {name: self._coming.pop(name) for name in names if name in self._coming}
        self._places |= self._collect(coming, "spawn", self._settings.start_limit)

    def _collect(
        self, asked: Mapping[str, Sequence[Any]], method: str, limit: float
    ) -> dict[str, list[Any]]:
        """All answers in the order of `asked`; the first loss, or else the first error, ends it."""
        places = [(ref, (name, i)) for name, refs in asked.items() for i, ref in enumerate(refs)]
        waiting = dict(places)
        answers: dict[tuple[str, int], Any] = {}
        deadline = time.monotonic() + limit
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._lost(*next(iter(waiting.values())), method, _late(limit, method))
            place = waiting.pop(ready[0])
            try:
                answers[place] = pickle.loads(ray.get(ready[0]))
            except RayError as error:
                raise self._lost(*place, method, _cause(error)) from None
        for _, place in places:
            if isinstance(answers[place], Failure):
                raise answers[place].error
        return {name: [answers[name, rank] for rank in range(len(asked[name]))] for name in asked}

    def _lost(self, name: str, rank: int, method: str, why: str) -> BranchLost:
        """Ends all branches, so that nobody is waited for and one that is late writes no more.

        Whoever waits for another branch meanwhile is told of the first loss, the cause of theirs.
        """
        with self._asked:
            if self._loss is None:
                places = self._places.get(name, ["no process yet"] * (rank + 1))
                where = places[rank] if len(places) == 1 else f"rank {rank}, {places[rank]}"
                self._loss = f"branch {name!r} ({where}) was lost in {method}: {why}."
                for host in self._all_hosts():
                    ray.kill(host)
            return BranchLost(self._loss)


def _ask(host: Any, work: Callable[..., object], *arguments: object) -> Any:
    """Sends a message; returns where the answer will be."""
    return host.serve.remote(pack((work, arguments)))


def join(settings: RayEngineConfig) -> bool:
    """Connects to a cluster, or starts one on this machine that ends with this process.

    False for a program that is connected already, and stays so.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # users are asked before we tell on them
    try:
        if settings.address:
            ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",  # else it joins any cluster that runs here
                num_cpus=0,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except ConnectionError as error:
        raise ValueError(
            f"engine.address must be that of a Ray cluster that runs: got {settings.address!r} "
            f"({error}). Start one with `ray start --head`, or leave the address out."
        ) from None
    return True


def _late(limit: float, method: str) -> str:
    if method == "spawn":
        total = ray.cluster_resources()
        return (
            f"it found no place, or did not load its model, within engine.start_limit = {limit:g} "
            f"s, on a cluster of {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs"
        )
    return f"it did not answer within {limit:g} s"


def _cause(error: RayError) -> str:
    """Ray's own words: the first sentence that says why, else the first one; lines with a tab are
    about actors."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("\t")]
    why = next((line for line in lines if " because " in line), lines[0])
    return why.split(". ")[0].rstrip(".: ")

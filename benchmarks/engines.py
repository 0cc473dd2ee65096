"""The Ray engine against the local one: the same steps of the same two branches, turn by turn.

A turn is what a run does between two checkpoints. Ray has a second turn in which every step is
taken alone, so that no branch is ahead. Writes its table between two marks of docs/scaling.md.
Knows nothing of other libraries.

    python -m benchmarks.engines --turns 9 --page docs/scaling.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.cpu import processor
from benchmarks.ratios import Spread
from copd.branch import Branch
from copd.config import Config, load_config
from copd.engine import Engine, create_engine, wait_for
from copd.recipes import build_plan
from copd.run.step import Position, take_step, take_steps
from copd.run.windows import positions_of, windows
from copd.types import Metrics

BRANCHES = ("text", "image")
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"
WAYS = {"local": "local", "Ray": "ray", "Ray, a step at a time": "ray"}
"""Ways to take steps, and the engine of each."""

LOCAL, *OTHERS = WAYS


@dataclass(frozen=True)
class Work:
    """A method of one branch: when it began and ended, on the machine's clock, and its CPU time."""

    branch: str
    began: float
    ended: float
    cpu: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Clocked:
    """An engine whose methods are timed where the branch is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_parallel = engine.is_parallel
        self.work: list[Work] = []

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        self._engine.spawn(name, model, frozen=frozen)

    def drop(self, name: str) -> None:
        self._engine.drop(name)

    def call(
        self, method: Callable[[Branch, Any], Any], inputs: Mapping[str, Any]
    ) -> dict[str, Any]:
        answers = self._engine.call(clocked(method), inputs)
        self.work += [Work(name, *clocks) for name, (_, *clocks) in answers.items()]
        return {name: answer for name, (answer, *_) in answers.items()}

    def clear(self) -> None:
        self._engine.clear()

    def close(self) -> None:
        self._engine.close()


def clocked(
    method: Callable[[Branch, Any], Any],
) -> Callable[[Branch, Any], tuple[Any, float, float, float]]:
    """The method; when it began and ended, on a clock that all processes of a machine share, and the
    seconds of its process."""

    def timed(branch: Branch, value: Any) -> tuple[Any, float, float, float]:
        began, cpu = time.clock_gettime(time.CLOCK_MONOTONIC), time.process_time()
        answer = method(branch, value)
        ended = time.clock_gettime(time.CLOCK_MONOTONIC)
        return answer, began, ended, time.process_time() - cpu

    timed.__name__ = method.__name__
    return timed


@dataclass(frozen=True)
class Turn:
    """Some steps on one engine."""

    num_steps: int
    seconds: float
    work: Sequence[Work]

    @property
    def overhead(self) -> float:
        """Seconds in which no branch worked."""
        return self.seconds - covered((own.began, own.ended) for own in self.work)

    @property
    def slowest(self) -> float:
        """Seconds of the branch that works longest: the least that branches side by side take."""
        names = {own.branch for own in self.work}
        return max(sum(own.seconds for own in self.work if own.branch == name) for name in names)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, reached))
        reached = max(reached, ended)
    return total


def settings(engine: str) -> Config:
    """The laptop's, with two branches."""
    words = ["--recipe.branches", "{text = 'text', image = 'image'}"]
    words += ["--engine.type", engine, "--engine.num_threads", "1"]
    if engine == "ray":
        words += ["--engine.num_cpus", "0"]  # of the first one's cluster, which counts none
    return load_config(Path("configs/laptop.toml"), words)


def take_turn(
    engine: Clocked, config: Config, positions: Sequence[Position], *, together: bool
) -> tuple[Turn, list[Mapping[str, Metrics]]]:
    engine.work = []
    started = time.perf_counter()
    if together:
        results = list(take_steps(engine, config, positions))
    else:
        results = [take_step(engine, config, position) for position in positions]
    turn = Turn(len(positions), time.perf_counter() - started, engine.work)
    return turn, [result.metrics for result in results]


def measure(num_turns: int) -> list[dict[str, Turn]]:
    """Turns of equal steps by way, in another order each time; the first ones warm up."""
    configs = {way: settings(engine) for way, engine in WAYS.items()}
    plan = build_plan(configs[LOCAL])
    assert set(plan.branches) == set(BRANCHES), plan.branches
    engines = {way: Clocked(create_engine(config)) for way, config in configs.items()}
    found: list[dict[str, Turn]] = []
    try:
        for engine in engines.values():
            for name in plan.branches:
                engine.spawn(name, configs[LOCAL].model.path)
            wait_for(engine, plan.branches)
        for window in islice(windows(configs[LOCAL], plan, 0), 1 + num_turns):
            positions, turns, metrics = positions_of(plan, window, ()), {}, {}
            order = deque(WAYS)
            order.rotate(len(found))
            for way in order:
                turns[way], metrics[way] = take_turn(
                    engines[way], configs[way], positions, together=way != OTHERS[1]
                )
            assert all(own == metrics[LOCAL] for own in metrics.values()), f"{window} differs"
            found.append(turns)
            seconds = ", ".join(f"{turns[way].seconds:.2f} s {way}" for way in WAYS)
            print(f"steps {window[0]} to {window[-1]}: {seconds}", flush=True)
    finally:
        for engine in reversed(engines.values()):  # the cluster was started by the first on Ray
            engine.close()
    return found[1:]


def rows(turns: Sequence[Mapping[str, Turn]]) -> list[tuple[str, list[str]]]:
    """A column per way on Ray."""
    table: Mapping[str, Callable[[Turn, Turn], float]] = {
        "local engine, seconds per step": lambda local, _: local.seconds / local.num_steps,
        "Ray, seconds per step": lambda _, ray: ray.seconds / ray.num_steps,
        "**throughput, Ray / local**": lambda local, ray: local.seconds / ray.seconds,
        "the same, were there nothing to wait for": lambda local, _: local.seconds / local.slowest,
        "CPU time of the branches, Ray / local": lambda local, ray: _cpu(ray) / _cpu(local),
        "**overhead of the engine, % of the time on Ray**": lambda _, ray: (
            100.0 * ray.overhead / ray.seconds
        ),
    }
    return [
        ("", OTHERS),
        *(
            (name, [_words([value(own[LOCAL], own[way]) for own in turns]) for way in OTHERS])
            for name, value in table.items()
        ),
    ]


def _cpu(turn: Turn) -> float:
    return sum(own.cpu for own in turn.work)


def _words(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.2f} ({spread.lower:.2f} to {spread.upper:.2f})"


def page(turns: Sequence[Mapping[str, Turn]]) -> str:
    """The table in Markdown, with what it was measured on."""
    (_, header), *body = rows(turns)
    lines = [
        f"Written by `python -m benchmarks.engines` on {time.strftime('%Y-%m-%d')}: "
        f"{processor()}, torch {version('torch')}, ray {version('ray')}.",
        f"Two branches ({' and '.join(BRANCHES)}) of `configs/laptop.toml`, a thread each; the "
        f"{turns[0][LOCAL].num_steps} steps between two checkpoints in turn, {len(turns)} times "
        "after one to warm up; medians with quartiles.",
        "",
        f"| | {' | '.join(header)} |",
        f"| --- |{' ---: |' * len(header)}",
        *(f"| {name} | {' | '.join(cells)} |" for name, cells in body),
    ]
    return "\n".join(lines)


def between_marks(text: str, new: str) -> str:
    """The text with what is between the marks replaced."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(
            f"the page needs the lines {BEGIN} and {END} once each: got {text.count(BEGIN)} and "
            f"{text.count(END)}. Put them where the table belongs."
        )
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{new}\n{END}{rest.split(END)[1]}"


def main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--page", type=Path, help="a page with the two marks; else it is printed")
    given = parser.parse_args(words)
    table = page(measure(given.turns))
    if given.page:
        text = given.page.read_text(encoding="utf-8")
        given.page.write_text(between_marks(text, table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])

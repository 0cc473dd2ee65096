"""The Ray engine against the local one: the same steps of the same two branches, turn by turn.

Writes its table between two marks of docs/scaling.md. Knows nothing of other libraries.

    python -m benchmarks.engines --rounds 9 --page docs/scaling.md
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cpu import processor
from benchmarks.ratios import Spread
from copd.branch import Branch
from copd.config import Config, load_config
from copd.engine import Engine, create_engine, wait_for
from copd.recipes import Plan, build_plan
from copd.run.step import Position, StepResult, take_step

BRANCHES = ("text", "image")
BEGIN, END = "<!-- engines: begin -->", "<!-- engines: end -->"
ENGINES = {
    "local": ("--engine.type", "local", "--engine.num_threads", "1"),
    "ray": ("--engine.type", "ray", "--engine.num_threads", "1"),
}


@dataclass(frozen=True)
class Work:
    """A verb of one branch: when it began and ended, on the machine's clock, and its CPU time."""

    branch: str
    began: float
    ended: float
    cpu: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Clocked:
    """An engine whose verbs are timed where the branch is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.is_parallel = engine.is_parallel
        self.work: list[Work] = []

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        self._engine.spawn(name, model, frozen=frozen)

    def drop(self, name: str) -> None:
        self._engine.drop(name)

    def each(self, verb: Callable[[Branch, Any], Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        answers = self._engine.each(clocked(verb), inputs)
        self.work += [Work(name, *clocks) for name, (_, *clocks) in answers.items()]
        return {name: answer for name, (answer, *_) in answers.items()}

    def clear(self) -> None:
        self._engine.clear()

    def close(self) -> None:
        self._engine.close()


def clocked(
    verb: Callable[[Branch, Any], Any],
) -> Callable[[Branch, Any], tuple[Any, float, float, float]]:
    """The verb; when it began and ended, on a clock that all processes of a machine share, and the
    seconds of its process."""

    def timed(branch: Branch, value: Any) -> tuple[Any, float, float, float]:
        began, cpu = time.clock_gettime(time.CLOCK_MONOTONIC), time.process_time()
        answer = verb(branch, value)
        ended = time.clock_gettime(time.CLOCK_MONOTONIC)
        return answer, began, ended, time.process_time() - cpu

    timed.__name__ = verb.__name__
    return timed


@dataclass(frozen=True)
class Turn:
    """One step on one engine."""

    stage: str
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
    words = ("--recipe.branches", "{text = 'text', image = 'image'}", *ENGINES[engine])
    return load_config(Path("configs/laptop.toml"), words)


def take_turn(engine: Clocked, config: Config, plan: Plan, step: int) -> tuple[Turn, StepResult]:
    engine.work = []
    index, _ = plan.locate(step - 1)
    position = Position(step, index, plan.stages[index])
    started = time.perf_counter()
    result = take_step(engine, config, position)
    return Turn(position.stage.name, time.perf_counter() - started, engine.work), result


def measure(num_rounds: int) -> list[tuple[Turn, Turn]]:
    """Pairs of turns, local and Ray, of equal steps; the first round warms both up."""
    configs = {name: settings(name) for name in ENGINES}
    plan = build_plan(configs["local"])
    assert set(plan.branches) == set(BRANCHES), plan.branches
    engines = {name: Clocked(create_engine(config)) for name, config in configs.items()}
    pairs: list[tuple[Turn, Turn]] = []
    try:
        for engine in engines.values():
            for name in plan.branches:
                engine.spawn(name, configs["local"].model.path)
            wait_for(engine, plan.branches)
        for step in range(1, 1 + steps_per_round(plan) * (1 + num_rounds)):
            order = list(ENGINES) if step % 2 else list(reversed(ENGINES))
            turns = {name: take_turn(engines[name], configs[name], plan, step) for name in order}
            (local, one), (ray, other) = turns["local"], turns["ray"]
            assert one.metrics == other.metrics, f"step {step} differs between the engines"
            pairs.append((local, ray))
            print(f"step {step} {local.stage}: {local.seconds:.2f} s, {ray.seconds:.2f} s")
    finally:
        for engine in engines.values():
            engine.close()
    return pairs[steps_per_round(plan) :]


def steps_per_round(plan: Plan) -> int:
    """An RLVR stage and a mutual stage."""
    return sum(stage.steps for stage in plan.stages[:2])


def rows(pairs: Sequence[tuple[Turn, Turn]], per_round: int) -> list[tuple[str, list[str]]]:
    """A column per kind of step, and one of whole rounds."""
    stages = list(dict.fromkeys(local.stage for local, _ in pairs))
    columns = [[[pair] for pair in pairs if pair[0].stage == stage] for stage in stages]
    columns.append(
        [list(pairs[start : start + per_round]) for start in range(0, len(pairs), per_round)]
    )
    table = {
        "local engine, seconds per step": lambda own: _mean(local.seconds for local, _ in own),
        "Ray, seconds per step": lambda own: _mean(ray.seconds for _, ray in own),
        "**throughput, Ray / local**": lambda own: (
            _mean(local.seconds for local, _ in own) / _mean(ray.seconds for _, ray in own)
        ),
        "the same, were there nothing to wait for": lambda own: (
            _mean(local.seconds for local, _ in own) / _mean(local.slowest for local, _ in own)
        ),
        "CPU time of the branches, Ray / local": lambda own: (
            _mean(_cpu(ray) for _, ray in own) / _mean(_cpu(local) for local, _ in own)
        ),
        "**overhead of the engine, % of a step on Ray**": lambda own: (
            100.0 * _mean(ray.overhead for _, ray in own) / _mean(ray.seconds for _, ray in own)
        ),
    }
    return [
        ("", [*stages, "whole rounds"]),
        *(
            (name, [_words([value(own) for own in column]) for column in columns])
            for name, value in table.items()
        ),
    ]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _cpu(turn: Turn) -> float:
    return sum(own.cpu for own in turn.work)


def _words(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.2f} ({spread.lower:.2f} to {spread.upper:.2f})"


def page(pairs: Sequence[tuple[Turn, Turn]], per_round: int) -> str:
    """The table in Markdown, with what it was measured on."""
    (_, header), *body = rows(pairs, per_round)
    lines = [
        f"Written by `python -m benchmarks.engines` on {time.strftime('%Y-%m-%d')}: "
        f"{processor()}, torch {version('torch')}, ray {version('ray')}.",
        f"Two branches ({' and '.join(BRANCHES)}) of `configs/laptop.toml`, a thread each; every "
        f"step on both engines in turn, {len(pairs) // per_round} rounds after one to warm up; "
        "medians with quartiles.",
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
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--page", type=Path, help="a page with the two marks; else it is printed")
    given = parser.parse_args(words)
    per_round = steps_per_round(build_plan(settings("local")))
    table = page(measure(given.rounds), per_round)
    if given.page:
        text = given.page.read_text(encoding="utf-8")
        given.page.write_text(between_marks(text, table), encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main(sys.argv[1:])

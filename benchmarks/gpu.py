"""Measure copd against plain transformers on a GPU: `python -m benchmarks.gpu`.

Both sides are loaded and warm in one process and take turns, round by round. The results are
docs/gpu.md and docs/gpu.json. `--device cpu --toy` tests the script with a toy model.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.cases import Case, Shapes
from benchmarks.floor import groups_of, least_flops
from benchmarks.gpu_page import page
from benchmarks.model import save_model
from benchmarks.ours import build_config
from benchmarks.repeated import Repeated
from copd.branch import Branch
from copd.branch.prompts import PromptCache
from copd.planning.shapes import read_shapes
from copd.policy import Policy
from copd.types import RolloutRequest, ScoreRequest, TrainingBatch, UpdateRequest

FULL = Case("full", "GRPO, pictures", "repeated", 1.0, (1024, 1024), lengths=(512, 512))
TOY = replace(FULL, name="toy", media=(64, 64), group_size=2, lengths=(6, 6), num_prompts=2)
"""The cases, named like their models in models.json; 32 x 32 pixels are a visual token."""

PHASES = ("sampling", "scoring", "update")
_DATA_SHEET = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12}
"""Dense bfloat16 FLOP/s in the vendor's data sheet."""


class Side(Protocol):
    """One of the compared sides; each phase works on the results of the one before."""

    micro_batch: int

    def sample(self, step: int) -> None: ...
    def score(self) -> None: ...
    def update(self) -> None: ...


class Ours:
    """A branch with micro-batches of so many tokens."""

    def __init__(
        self, case: Case, folder: Path, *, micro_batch: int, device: str, dtype: str
    ) -> None:
        self.case, self.micro_batch = case, micro_batch
        [name] = case.domains
        domain = Shapes(name, case.media)
        config = build_config(case, folder, micro_batch, device=device, dtype=dtype)
        policy = Policy.load(folder, device=device)
        policy.end_tokens = frozenset()  # all completions have the full length
        prompts = PromptCache({name: domain}, policy.render_all)
        self.branch, self.domain = Branch("learner", policy, prompts, config), domain

    def sample(self, step: int) -> None:
        problems = tuple(p.id for p in self.domain.problems(step, self.case.num_prompts))
        request = RolloutRequest("rlvr", problems, temperature=1.0, seed=step, position="measured")
        [self.batch] = self.branch.sample([request])
        assert (self.batch.lengths == self.case.lengths[1]).all(), "no token ends a completion"

    def score(self) -> None:
        batch = self.batch
        probes = np.linspace(0, len(batch.token_ids) - 1, 128).astype(np.int32)
        request = ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, top_k=64)
        self.branch.score([request])

    def update(self) -> None:
        batches = (TrainingBatch(self.domain.name, self.batch),)
        self.branch.update(UpdateRequest(batches, position="measured"))


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--toy", action="store_true", help="a toy model, to test the script")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the results")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA device here: got --device cuda, expected a machine with one. "
            "Run it there, or test the script with --device cpu --toy."
        )
    record = measure(TOY if arguments.toy else FULL, arguments.device, arguments.rounds)
    text, folder = page(record), arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


def measure(case: Case, device: str, rounds: int) -> dict[str, Any]:
    """Measure both sides and return the record."""
    dtype = "bfloat16" if device == "cuda" else "float32"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_parameters = save_model(folder, case.name)
        least, prompt_tokens = least_of_phases(folder, case)
        of_problem = prompt_tokens + case.group_size * case.lengths[1]
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        sides = {
            "ours": first_that_fits(
                partial(Ours, case, folder, **place),
                [of_problem * n for n in halves(case.num_prompts)],
            ),
            "plain": first_that_fits(
                partial(Repeated, case, folder, **place), halves(-(-case.num_rows // 4))
            ),
        }
        runs = take_turns(sides, rounds)
    machine = describe(device)
    return {
        "machine": machine,
        "matmul_rate": matmul_rate(device),
        "data_sheet": _DATA_SHEET.get(machine["device"]),
        "rounds": rounds,
        "model": {"parameters": num_parameters, "dtype": dtype},
        "step": {
            "prompts": case.num_prompts,
            "group": case.group_size,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": case.lengths[1],
            "sampled": case.num_rows * case.lengths[1],
        },
        "micro_batch": {
            "ours, tokens": sides["ours"].micro_batch,
            "plain, rows": sides["plain"].micro_batch,
        },
        "least_flops": least,
        "runs": runs,
    }


def least_of_phases(folder: Path, case: Case) -> tuple[dict[str, int], int]:
    """Return the least FLOPs of each phase (`benchmarks.floor`), and the tokens of a prompt.

    Sampling and scoring are a forward pass over prompts and completions, an update is three.
    """
    shapes, groups = read_shapes(folder), groups_of(case, 0, folder)
    update = least_flops(shapes, groups)
    forward = least_flops(shapes, groups, num_scorings=1) - update
    least = {"sampling": forward, "scoring": forward, "update": update}
    return least, groups[0].prompt


def halves(number: int) -> list[int]:
    """Return the number, half of it, and so on down to 1."""
    return [number >> shift for shift in range(number.bit_length())]


def first_that_fits(build: Callable[..., Side], sizes: Sequence[int]) -> Side:
    """Return the side with the largest micro-batch whose first round fits in memory.

    That round is also its warm-up.
    """
    for size in sizes:
        side = build(micro_batch=size)
        try:
            for phase in PHASES:
                run(side, phase, 0)
            return side
        except torch.OutOfMemoryError:
            pass
        del side
        free_cache()
    raise SystemExit(f"out of memory with the smallest micro-batch, {sizes[-1]}.")


def take_turns(sides: dict[str, Side], rounds: int) -> list[dict[str, Any]]:
    """Run every phase of every round on every side.

    A side finishes all phases before the other begins, whose memory would else include its prompts.
    """
    runs = []
    for step in range(1, rounds + 1):
        for name in list(sides) if step % 2 else list(reversed(sides)):
            free_cache()
            for phase in PHASES:
                runs.append({"round": step, "side": name, **run(sides[name], phase, step)})
    return runs


def run(side: Side, phase: str, step: int) -> dict[str, Any]:
    """Run a phase; return its seconds, and its memory beyond what was allocated before."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if has_gpu else 0
    started = now()
    if phase == "sampling":
        side.sample(step)
    elif phase == "scoring":
        side.score()
    else:
        side.update()
    seconds = now() - started
    growth = torch.cuda.max_memory_allocated() - before if has_gpu else None
    return {"phase": phase, "seconds": seconds, "growth": growth}


def free_cache() -> None:
    """Return unused memory to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def now() -> float:
    """Read the host's clock after the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(device: str) -> float:
    """Return the FLOP/s of a large bfloat16 product of random matrices, median of ten."""
    width = 8192 if device == "cuda" else 256
    generator = torch.Generator(device).manual_seed(0)
    left, right = (
        torch.randn(width, width, generator=generator, device=device).bfloat16() for _ in range(2)
    )
    seconds = []
    for _ in range(13):
        started = now()
        torch.mm(left, right)
        seconds.append(now() - started)
    return 2 * width**3 / statistics.median(seconds[3:])


def describe(device: str) -> dict[str, Any]:
    """Return what the numbers depend on."""
    on_gpu = device == "cuda"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "memory": torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "transformers")},
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    main()

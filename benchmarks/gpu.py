"""Measures copd against the plain repeated path on a GPU: `python -m benchmarks.gpu`.

Both sides are loaded and warm in one process and take turns, round by round; the result is
docs/gpu.md and docs/gpu.json. `--device cpu --toy` runs the same code small, to test it.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.gpu_model import FULL, TOY, Size, least_of_phases, save_model
from benchmarks.gpu_page import page
from benchmarks.gpu_sides import Ours, Place, Plain, Side

PHASES = ("sampling", "scoring", "update")
_DATA_SHEET = {"NVIDIA H200": 989e12, "NVIDIA H100 80GB HBM3": 989e12}
"""Dense bfloat16 FLOP/s by the vendor's data sheet."""

AnySide = TypeVar("AnySide", bound=Side)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds")
    parser.add_argument("--toy", action="store_true", help="a model of toy size, to test this")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder of the results")
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA device here: got --device cuda, expected a machine with one. "
            "Run it there, or test the script with --device cpu --toy."
        )
    record = measure(TOY if given.toy else FULL, given.device, given.rounds)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = page(record)
    (given.out / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


def measure(size: Size, device: str, rounds: int) -> dict[str, Any]:
    """All numbers."""
    place = Place(device, "bfloat16" if device == "cuda" else "float32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        num_parameters = save_model(folder, size)
        least, prompt_tokens = least_of_phases(folder, size)
        of_problem = prompt_tokens + size.group_size * size.num_tokens
        sides: dict[str, Side] = {}
        sides["ours"] = ours = first_that_fits(
            lambda tokens: Ours(folder, size, place, tokens),
            [of_problem * n for n in halves(size.num_prompts)],
        )
        sides["plain"] = plain = first_that_fits(
            lambda rows: Plain(folder, size, place, rows),
            halves(-(-size.num_prompts * size.group_size // 4)),
        )
        runs = take_turns(sides, rounds)
    return {
        "machine": describe(device),
        "matmul_rate": matmul_rate(device),
        "data_sheet": _DATA_SHEET.get(describe(device)["device"]),
        "rounds": rounds,
        "model": {"parameters": num_parameters, "dtype": place.dtype},
        "step": {
            "prompts": size.num_prompts,
            "group": size.group_size,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": size.num_tokens,
            "sampled": size.sampled,
        },
        "micro_batch": {"ours, tokens": ours.micro_batch, "plain, rows": plain.micro_batch},
        "least_flops": least,
        "runs": runs,
    }


def halves(number: int) -> list[int]:
    """The number, half of it, and so on down to 1."""
    return [number >> shift for shift in range(number.bit_length())]


def first_that_fits(build: Callable[[int], AnySide], sizes: Sequence[int]) -> AnySide:
    """The side with the largest micro-batch whose first round, also its warm-up, fits in memory."""
    for size in sizes:
        side = build(size)
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
    """Every phase of every round on every side: seconds, and memory beyond what was there before.

    A side goes through all phases before the other, whose memory would else hold its prompts too.
    """
    runs = []
    for step in range(1, rounds + 1):
        for name in list(sides) if step % 2 else list(reversed(sides)):
            free_cache()
            for phase in PHASES:
                runs.append({"round": step, "side": name, **run(sides[name], phase, step)})
    return runs


def run(side: Side, phase: str, step: int) -> dict[str, Any]:
    """One phase of a side."""
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
    """Memory that nothing uses, back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def now() -> float:
    """The host's clock, once the GPU has caught up."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def matmul_rate(device: str) -> float:
    """FLOP/s of a large bfloat16 product of random matrices, median of ten after three."""
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
    """What the numbers depend on."""
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

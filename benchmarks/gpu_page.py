"""docs/gpu.md, from the results or without any. Measures nothing."""

from __future__ import annotations

import statistics
from typing import Any

Record = dict[str, Any]

_PHASES = ("sampling", "scoring", "update")
_WHAT = """# On a GPU

The same code as on a CPU, three things decided by the device:

- passes over completions attend by flex attention (src/copd/policy/flex.py), whose block mask is
  built from the lengths: no mask of all pairs exists;
- decoding works on storage that does not move and is replayed as a CUDA graph
  (src/copd/policy/decode_graph.py), captured again when the storage doubles or rows leave;
- the host looks at ended rows and at divergence every 16 steps; between looks it never waits.

`pytest -m gpu` compares log-probabilities, gradients and samples on the GPU with padded passes
there and with the CPU.

## What is measured

    python -m benchmarks.gpu

Needs one GPU (about 100 GB for the largest micro-batches; smaller ones are tried when memory runs
out) and writes this page and gpu.json. A random Qwen3-VL of about half a billion parameters,
bfloat16 compute under autocast with float32 master weights; 16 prompts of 1,024 visual tokens, 8
completions each, 512 sampled tokens each (no token ends a completion). Phases: sampling, scoring
as a teacher, update with AdamW. *Ours* is a branch as a run uses it. *Plain* is transformers'
`generate` on repeated rows, then padded passes over whole repeated rows in the largest micro-batch
that fits. Both are warm, in one process, and take turns round by round.

Fraction of peak: the least FLOPs of a phase (each prompt and pixel once, benchmarks/floor.py; a
forward pass for sampling and scoring, three for an update) over its seconds and the peak, so work
that is repeated earns nothing. The peak is a measured 8192-cubed bfloat16 product, and the data
sheet's number. Tokens per second count sampled tokens. Memory is what a phase needs beyond what was
there before it; ours keeps the graph of the prompts from sampling to update, if one micro-batch
holds them all.
"""
_NOTHING = """
## Results

None yet: nobody has run it on a GPU. On a CPU, `python -m benchmarks.gpu --device cpu --toy --out
FOLDER` runs the same script small; its numbers mean nothing.
"""


def page(record: Record | None) -> str:
    """The whole page."""
    return _WHAT + (_NOTHING if record is None else _results(record))


def _results(record: Record) -> str:
    machine, step = record["machine"], record["step"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    sheet = record["data_sheet"]
    rates = f"measured {record['matmul_rate'] / 1e12:.3g} TFLOP/s"
    rates += f", data sheet {sheet / 1e12:.3g}" if sheet else ", data sheet unknown"
    sizes = ", ".join(f"{name}: {size:,}" for name, size in record["micro_batch"].items())
    lines = [
        "",
        "## Results",
        "",
        f"{machine['date']}, {machine['device']}, Python {machine['python']}, {packages};",
        f"`{machine['command']}`, {record['rounds']} rounds, medians over them;",
        f"{record['model']['parameters'] / 1e6:.1f} M parameters in {record['model']['dtype']};",
        f"{step['prompts']} x {step['group']} completions of {step['completion_tokens']} tokens "
        f"after prompts of {step['prompt_tokens']};",
        f"micro-batches ({sizes}); bfloat16 products: {rates}.",
        "",
        "| phase | ours, s | plain, s | plain / ours | ours, tokens/s | plain, tokens/s "
        "| ours, of measured peak | of data sheet | plain, of measured peak "
        "| ours, GB more | plain, GB more |",
        "| --- " * 11 + "|",
        *(_row(record, phase) for phase in _PHASES),
        _total(record),
    ]
    return "\n".join(lines) + "\n"


def _row(record: Record, phase: str) -> str:
    ours, plain = (_median(record, side, phase) for side in ("ours", "plain"))
    ratios = [
        _seconds(record, "plain", phase, number) / _seconds(record, "ours", phase, number)
        for number in range(1, record["rounds"] + 1)
    ]
    sampled, least = record["step"]["sampled"], record["least_flops"][phase]
    sheet = record["data_sheet"]
    cells = [
        phase,
        f"{ours:.3f}",
        f"{plain:.3f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        f"{sampled / ours:,.0f}",
        f"{sampled / plain:,.0f}",
        f"{least / ours / record['matmul_rate']:.1%}",
        f"{least / ours / sheet:.1%}" if sheet else "",
        f"{least / plain / record['matmul_rate']:.1%}",
        _memory(record, "ours", phase),
        _memory(record, "plain", phase),
    ]
    return "| " + " | ".join(cells) + " |"


def _total(record: Record) -> str:
    """A step is sampling and update; scoring is a teacher's."""
    ours, plain = (
        sum(_median(record, side, phase) for phase in ("sampling", "update"))
        for side in ("ours", "plain")
    )
    sampled = record["step"]["sampled"]
    cells = ["step without scoring", f"{ours:.3f}", f"{plain:.3f}", f"{plain / ours:.2f}"]
    cells += [f"{sampled / ours:,.0f}", f"{sampled / plain:,.0f}", *[""] * 5]
    return "| " + " | ".join(cells) + " |"


def _runs(record: Record, side: str, phase: str) -> list[Record]:
    return [run for run in record["runs"] if (run["side"], run["phase"]) == (side, phase)]


def _median(record: Record, side: str, phase: str) -> float:
    return statistics.median(run["seconds"] for run in _runs(record, side, phase))


def _seconds(record: Record, side: str, phase: str, number: int) -> float:
    [run] = [run for run in _runs(record, side, phase) if run["round"] == number]
    return run["seconds"]


def _memory(record: Record, side: str, phase: str) -> str:
    growth = [run["growth"] for run in _runs(record, side, phase)]
    return "" if growth[0] is None else f"{max(growth) / 1e9:.1f}"

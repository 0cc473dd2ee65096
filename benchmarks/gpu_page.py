"""The page docs/gpu.md, with or without results."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

Record = dict[str, Any]

_NOTES = Path(__file__).with_name("gpu_notes.md")
_NO_RESULTS = """None yet: the script has not run on a GPU. On a CPU,
`python -m benchmarks.gpu --device cpu --toy --out FOLDER` runs it small; its numbers mean nothing.
"""


def page(record: Record | None) -> str:
    """Return the whole page."""
    results = _NO_RESULTS if record is None else _results(record)
    return f"{_NOTES.read_text(encoding='utf-8')}\n## Results\n\n{results}"


def _results(record: Record) -> str:
    machine, step, sheet = record["machine"], record["step"], record["data_sheet"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    rates = f"measured {record['matmul_rate'] / 1e12:.3g} TFLOP/s"
    rates += f", data sheet {sheet / 1e12:.3g}" if sheet else ", data sheet unknown"
    sizes = ", ".join(f"{name}: {size:,}" for name, size in record["micro_batch"].items())
    lines = [
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
        *(_phase(record, phase) for phase in record["least_flops"]),
        _total(record),
    ]
    return "\n".join(lines) + "\n"


def _phase(record: Record, phase: str) -> str:
    ours, plain = (_median(record, side, phase) for side in ("ours", "plain"))
    seconds = [[run["seconds"] for run in _runs(record, s, phase)] for s in ("plain", "ours")]
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    least, sheet = record["least_flops"][phase], record["data_sheet"]
    return _row(
        *(phase, f"{ours:.3f}", f"{plain:.3f}"),
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        *(f"{record['step']['sampled'] / seconds:,.0f}" for seconds in (ours, plain)),
        f"{least / ours / record['matmul_rate']:.1%}",
        f"{least / ours / sheet:.1%}" if sheet else "",
        f"{least / plain / record['matmul_rate']:.1%}",
        *(_memory(record, side, phase) for side in ("ours", "plain")),
    )


def _total(record: Record) -> str:
    """Return the row of a whole step: sampling and update, as scoring is a teacher's."""
    ours, plain = (
        sum(_median(record, side, phase) for phase in ("sampling", "update"))
        for side in ("ours", "plain")
    )
    rates = (f"{record['step']['sampled'] / seconds:,.0f}" for seconds in (ours, plain))
    cells = ["step without scoring", f"{ours:.3f}", f"{plain:.3f}", f"{plain / ours:.2f}", *rates]
    return _row(*cells, *[""] * 5)


def _runs(record: Record, side: str, phase: str) -> list[Record]:
    """Return the runs of a side and phase by round."""
    runs = [run for run in record["runs"] if (run["side"], run["phase"]) == (side, phase)]
    return sorted(runs, key=lambda run: run["round"])


def _median(record: Record, side: str, phase: str) -> float:
    return statistics.median(run["seconds"] for run in _runs(record, side, phase))


def _memory(record: Record, side: str, phase: str) -> str:
    growth = [run["growth"] for run in _runs(record, side, phase)]
    return "" if growth[0] is None else f"{max(growth) / 1e9:.1f}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"

"""What `copd plan` says of memory, against real runs of random models: docs/memory.md.

Runs the workers and writes the page; measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cpu import processor
from benchmarks.memory_cases import highest, measured, planned, save_models, values

CASES: Mapping[str, tuple[str, int, Mapping[str, Any]]] = {
    "full, K = 1": ("text", 1, {}),
    "full, K = 3": ("text", 3, {}),
    "full, K = 3, checkpointing": ("text", 3, {"gradient_checkpointing": True}),
    "full, K = 3, bfloat16": ("text", 3, {"dtype": "bfloat16"}),
    "full, K = 1, small micro-batches": ("text", 1, {"micro_batch_tokens": 256}),
    "LoRA, K = 1": ("text", 1, {"branches": "lora"}),
    "LoRA, K = 3": ("text", 3, {"branches": "lora"}),
    "LoRA, K = 1, checkpointing": ("text", 1, {"branches": "lora", "gradient_checkpointing": True}),
    "LoRA, K = 3, checkpointing": ("text", 3, {"branches": "lora", "gradient_checkpointing": True}),
    "LoRA, K = 1, bfloat16": ("text", 1, {"branches": "lora", "dtype": "bfloat16"}),
    "pictures, K = 1": ("seeing", 1, {"modality": "image"}),
    "pictures, K = 1, frozen tower": ("seeing", 1, {"modality": "image", "frozen_vision": True}),
    "pictures, LoRA, K = 3": ("seeing", 3, {"modality": "image", "branches": "lora"}),
}

Row = Mapping[str, float]


def page(rows: Mapping[str, Row], heading: str) -> str:
    """The table, and adapters of three branches against those of one."""
    lines = [
        "| run | planned, MB | in use, MB | ratio | left to glibc, MB | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        ratios = [row["planned"] / row[kind] for kind in ("used", "kept")]
        numbers = [f"{row[kind] / 1e6:.0f}" for kind in ("planned", "used", "kept")]
        cells = [name, *numbers[:2], f"{ratios[0]:.2f}", numbers[2], f"{ratios[1]:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    one, three = rows.get("LoRA, K = 1"), rows.get("LoRA, K = 3")
    if one and three:
        used, kept = (three[kind] / one[kind] for kind in ("used", "kept"))
        lines += ["", f"LoRA branches, K = 3 over K = 1: {used:.2f} in use, {kept:.2f} with glibc."]
    table = "\n".join(lines)
    return f"{heading}\n\n{table}\n"


def measure(name: str, model: Path, results: Path) -> Row:
    """A case by itself, once with freed blocks returned and once without; one that is there
    already is read."""
    kept_at = results / f"{name.replace(', ', '-').replace(' ', '_')}.json"
    if kept_at.is_file():
        return json.loads(kept_at.read_text(encoding="utf-8"))
    _, num_branches, settings = CASES[name]
    run = values(model, num_branches, **settings)
    (used,), (kept,) = measured([run]), measured([run], return_freed=False)
    told, _ = planned(run, used["length"])
    row = {"planned": told, "used": highest(used), "kept": highest(kept)}
    kept_at.write_text(json.dumps(row), encoding="utf-8")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--runs", type=Path, default=Path("runs/memory"))
    parser.add_argument("--out", type=Path, default=Path("docs/memory.md"))
    given = parser.parse_args()
    heading = (
        "# Memory, planned and measured\n\n"
        f"Written by `python -m benchmarks.memory`. {time.strftime('%Y-%m-%d')}, {processor()}, "
        f"torch {version('torch')}, transformers {version('transformers')}.\n\n"
        "Two steps of training, with checkpoint, merge, export and evaluation, of random models: a "
        "Qwen3 of 15 million weights and a Qwen3-VL of 19 million. 4 prompts, 4 completions of up "
        "to 24 tokens each; one thread. Peaks are VmHWM above the resident memory before the model "
        "was loaded; the embedded base had run the same in float32 before that, so code and "
        "libraries are not counted, but products that oneDNN compiles for bfloat16 are. "
        "*In use*: blocks of 64 kB and more go back to the kernel once they are freed (mallopt). "
        "*Left to glibc*: as any process, with what its allocator keeps. The plan knows "
        "the mean length of the completions (`--completion-tokens`) and finds that of the prompts."
    )
    given.runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = save_models(Path(folder), num_layers=4)
        rows = {name: measure(name, models[CASES[name][0]], given.runs) for name in given.cases}
    given.out.write_text(page(rows, heading), encoding="utf-8")
    print(given.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

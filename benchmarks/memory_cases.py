"""What the measurements of memory run: random models of a few million weights, and configurations.

Knows no torch until a model is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}


def save_models(folder: Path, *, num_layers: int) -> dict[str, Path]:
    """A Qwen3 and a Qwen3-VL with random weights: their folders by name."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from benchmarks.model import build_tokenizer, rotary, save_random

    tokenizer = build_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text: dict[str, Any] = {**TEXT, "num_hidden_layers": num_layers}
    config = Qwen3Config(
        **text, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=0
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    save_random(
        folder / "seeing",
        text={**text, "rope_parameters": rotary(10000.0, (12, 10, 10))},
        vision={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "depth": 4,
            "num_heads": 4,
            "out_hidden_size": 512,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [1],
        },
        patch=4,
        limits={"shortest_edge": 8 * 8, "longest_edge": 1024 * 1024},
    )
    return {name: folder / name for name in ("text", "seeing")}


def values(
    path: Path,
    num_branches: int = 1,
    *,
    modality: str = "text",
    num_prompts: int = 4,
    group_size: int = 4,
    max_completion_tokens: int = 24,
    micro_batch_tokens: int = 16_384,
    **model: Any,
) -> dict[str, Any]:
    """A configuration of two steps: one branch on rewards, or several that teach each other."""
    names = ["a", "b", "c"][:num_branches]
    mutual = {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1}
    return {
        "model": {"path": str(path), "device": "cpu", **model},
        "domains": {name: {"type": "digits", "modality": modality} for name in names},
        "recipe": {"type": "mixed", "steps": 2}
        if num_branches == 1
        else {**mutual, "topology": "all", "merge": {"type": "uniform"}},
        "rollout": {
            "num_prompts": num_prompts,
            "group_size": group_size,
            "max_completion_tokens": max_completion_tokens,
        },
        "optimizer": {"micro_batch_tokens": micro_batch_tokens},
        "evaluation": {"base": False, "num_problems": 2, "num_samples": 2},
        "engine": {"num_threads": 1},
    }


def measured(
    runs: Sequence[Mapping[str, Any]], *, return_freed: bool = True
) -> list[dict[str, float]]:
    """Peaks by phase of every run, in bytes, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory_worker"]
    told = subprocess.run(
        [*command, *(["--return-freed"] if return_freed else [])],
        input=json.dumps(runs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )
    return json.loads(told.stdout)


def planned(run: Mapping[str, Any], length: float) -> tuple[int, dict[str, int]]:
    """The peak that `copd plan` tells for completions of a mean length, and that of every phase."""
    from copd.config import parse_config
    from copd.planning import memory_report
    from copd.recipes import build_plan

    config = parse_config({**run, "output_dir": "none"})
    memory = memory_report(config, build_plan(config), completion_tokens=round(length)).memory
    assert memory is not None, "the model is there"
    return memory.peak, dict(memory.phases)


def highest(peaks: Mapping[str, float]) -> float:
    """Of all phases of a measured run."""
    return max(value for phase, value in peaks.items() if phase != "length")

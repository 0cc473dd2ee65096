"""The plan agrees with the peak resident memory of real runs in a process of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.model import build_tokenizer, rotary, save_random
from copd.config import parse_config
from copd.planning import Expected, memory_report
from copd.recipes import build_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "full, K = 1": ("text", 1, {}),
    "full, K = 3": ("text", 3, {}),
    "LoRA, K = 1": ("text", 1, {"branches": "lora"}),
    "LoRA, K = 3": ("text", 3, {"branches": "lora"}),
    "LoRA, bfloat16": ("text", 1, {"branches": "lora", "dtype": "bfloat16"}),
    "LoRA, checkpointing": ("text", 1, {"branches": "lora", "gradient_checkpointing": True}),
    "checkpointing": ("text", 1, {"gradient_checkpointing": True}),
    "bfloat16": ("text", 1, {"dtype": "bfloat16"}),
    "pictures": ("vision", 1, {}),
}
"""Kind of model, number of branches, and further settings of the model."""

TEXT: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
VISION: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "depth": 4,
    "num_heads": 4,
    "out_hidden_size": 512,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [1],
}


def save_models(folder: Path) -> None:
    """A Qwen3 and a Qwen3-VL with random weights."""
    tokenizer = build_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = Qwen3Config(
        **TEXT, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=0
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    save_random(
        folder / "vision",
        text={**TEXT, "rope_parameters": rotary(10000.0, (12, 10, 10))},
        vision=VISION,
        patch=4,
    )


def configuration(path: Path, num_branches: int, model: Mapping[str, Any]) -> dict[str, Any]:
    """Two steps: one branch on rewards, or several that teach each other."""
    names = ["a", "b", "c"][:num_branches]
    modality = "image" if path.name == "vision" else "text"
    mixed = {"type": "mixed", "steps": 2}
    mutual = {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1, "topology": "all"}
    return {
        "model": {"path": str(path), "device": "cpu", **model},
        "domains": {name: {"type": "digits", "modality": modality} for name in names},
        "recipe": mixed if num_branches == 1 else {**mutual, "merge": {"type": "uniform"}},
        "rollout": {"num_prompts": 4, "group_size": 4, "max_completion_tokens": 24},
        "optimizer": {"micro_batch_tokens": 16_384},
        "evaluation": {"base": False, "num_problems": 2, "num_samples": 2},
        "engine": {"num_threads": 1},
    }


def planned(run: Mapping[str, Any], length: float) -> int:
    """The peak that `copd plan` predicts for completions of a mean length."""
    config = parse_config({**run, "output_dir": "none"})
    expected = Expected(completion_tokens=round(length))
    report = memory_report(config, build_plan(config), expected=expected)
    return report.memory[report.largest].peak


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, int]]:
    """By case the measured and the planned peak, in bytes."""
    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    runs = [configuration(folder / kind, num, model) for kind, num, model in CASES.values()]
    worker = subprocess.run(
        [sys.executable, "-m", "tests.planning.memory_worker"],
        input=json.dumps(runs),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    found = {}
    for case, run, phases in zip(CASES, runs, json.loads(worker.stdout), strict=True):
        length = phases.pop("length")
        found[case] = (max(phases.values()), planned(run, length))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_within_a_fifth_of_the_measurement(
    peaks: dict[str, tuple[float, int]], case: str
):
    measured, expected = peaks[case]
    assert expected == pytest.approx(measured, rel=0.2)


def test_three_adapters_take_little_more_than_one(peaks: dict[str, tuple[float, int]]):
    assert peaks["LoRA, K = 3"][0] <= 1.15 * peaks["LoRA, K = 1"][0]

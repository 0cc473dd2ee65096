"""Bytes of passes and phases, against numbers worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from copd.config import Config, parse_config
from copd.config.sections import LoraConfig
from copd.planning import memory_report, parse_size
from copd.planning.memory import Memory, estimate_memory, lora_sizes
from copd.planning.passes import KERNELS, MOST_SCORES, Passes, drawn, logits
from copd.planning.remedies import single_changes, together
from copd.planning.shapes import Shapes, read_shapes
from copd.planning.workload import Lengths, find_workload
from copd.policy.sampling.sampler import Pace
from copd.recipes import build_plan

SHAPES = Shapes(
    parameters=1000,
    layers=2,
    hidden=8,
    intermediate=12,
    query=12,
    key=6,
    num_heads=4,
    vocabulary=10,
    has_head_norms=True,
    is_tied=True,
    linears={"layers.0.q_proj": (12, 8), "layers.1.q_proj": (12, 8), "layers.0.up_proj": (12, 8)},
    largest=96,
    tower=None,
)
LENGTHS = Lengths(prompt=10, visual=0, completion=5, longest=12)


def config(**sections: Any) -> Config:
    given = {
        "output_dir": "none",
        "model": {"path": "tiny", "device": "cpu"},
        "domains": {n: {"type": "digits", "modality": "text"} for n in ("a", "b")},
        "recipe": {
            "type": "copd",
            "topology": "all",
            "rounds": 1,
            "rlvr_steps": 1,
            "opd_steps": 1,
            "merge": {"type": "uniform"},
        },
        "rollout": {"num_prompts": 3, "group_size": 4, "max_completion_tokens": 5},
        "optimizer": {"micro_batch_tokens": 70},
        "evaluation": {"num_problems": 2, "num_samples": 2},
    }
    return parse_config({**given, **{k: {**given.get(k, {}), **v} for k, v in sections.items()}})


def of(settings: Config, device: str = "cpu") -> Memory:
    return estimate_memory(settings, build_plan(settings), SHAPES, LENGTHS, device=device)


def test_a_layer_keeps_what_its_formula_says():
    # 4 (6 D + 4 I + 2 Q + 2 K + H) + 8 (Q + K)
    assert Passes(SHAPES, False).completion_layer == 4 * (48 + 48 + 24 + 12 + 4) + 8 * 18
    # two norms: 4 D four times, and five copies of 2 D; head norms 6 (Q + K); products; 4 H
    products = 2 * (4 * 12 + 2 * 12 + 2 * 6)
    assert Passes(SHAPES, True).completion_layer == 128 + 80 + 108 + products + 16


def test_checkpointing_keeps_a_layers_input_and_the_prompts_keys():
    # states of 5 run and 6 told tokens, two of each: 4 D (2 * 5 + 2 * 6)
    passes = Passes(SHAPES, False, is_checkpointed=True)
    assert passes.completions(5, 6) == 2 * 5 * 32 + 32 * 22
    assert passes.prompts(5, 7) == 2 * (5 * 32 + 7 * 8 * 6) + 3 * 32 * 5


def test_logits_are_kept_in_chunks():
    assert logits(100, 10) == 4 * 10 * 200
    assert logits(1024, 10) == 4 * 10 * 2048
    assert logits(1025, 10) == 4 * 10 * 1026
    assert logits(10**6, 10) == 4 * 10 * 3072
    assert drawn(3, 10, device="cpu") == 480
    assert drawn(1024, 2**17, device="cpu") == 16 * 2**20
    assert drawn(1024, 2**17, device="cuda") == 16 * 2**27
    assert drawn(7, 2**21, device="cpu") == 16 * 2**21


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_pieces_are_those_of_the_sampler(device):
    assert MOST_SCORES[device] == Pace.on(torch.device(device)).most_scores


def test_the_largest_step_of_a_plan():
    # mutual: each of two branches its own batch and one of the other's, which the other scores
    settings = config()
    load = find_workload(settings, build_plan(settings), LENGTHS)
    assert (load.num_batches, load.num_taught, load.step_prompts) == (2, 1, 6)
    assert load.is_one_loop  # 60 tokens of prompts
    assert load.problem_tokens == 30
    assert load.part_prompts == 2


def test_weights_moments_and_gradients_of_full_branches():
    memory = of(config())
    assert (memory.weights, memory.optimizer, memory.gradients) == (2 * 4000, 2 * 8000, 4000)
    # at the end one policy more, copies of the branches' weights and the base's, and their merge
    assert memory.phases["merge"] == 24_000 + 4000 + 3 * 4000 + 4000


def test_a_monitored_run_has_the_base_in_memory():
    assert of(config(monitor={"every": 1})).weights == 3 * 4000


def test_stale_teachers_are_copies_of_what_is_trained():
    stale = {**config().recipe.model_dump(), "max_staleness": 2}
    assert of(config(recipe=stale)).weights == 2 * 4000 + 2 * 4000
    assert of(config(recipe=stale, engine={"type": "ray"})).weights == 4000 + 4000
    adapters = {"branches": "lora", "lora": {"rank": 2}}
    assert of(config(recipe=stale, model=adapters)).weights == 4000 + 2 * 480 + 2 * 480
    assert "a copy" not in report(config()).describe()
    assert "2 x a copy to be asked" in report(config(recipe=stale)).describe()


def test_small_moments():
    assert of(config(optimizer={"type": "adamw_8bit"})).optimizer == 2 * 2000


def test_adapters_share_a_base():
    ranks, numbers = lora_sizes(SHAPES, LoraConfig(rank=2))
    assert (ranks, numbers) == (3, 2 * 3 * 20)
    assert lora_sizes(SHAPES, LoraConfig(rank=2, target_modules=("up_proj",)))[1] == 40
    memory = of(config(model={"branches": "lora", "lora": {"rank": 2}}))
    assert (memory.weights, memory.optimizer) == (4000 + 2 * 480, 2 * 960)
    assert memory.gradients == 480
    assert memory.prompts == 0
    halved = of(config(model={"branches": "lora", "dtype": "bfloat16", "lora": {"rank": 2}}))
    assert halved.weights == memory.weights - 2 * 3 * 96
    assert halved.phases["loading"] == 4000 + halved.weights
    assert memory.phases["export"] == memory.weights + memory.optimizer + 4 * (3 + 1) * 96


def test_prompts_that_do_not_fit_a_micro_batch_leave_no_graph():
    # 2 branches: 6 prompts of 10 tokens in 12 cells, 2 layers, and 3 states of each token
    passes = Passes(SHAPES, False)
    token, cell = passes.prompt_layer
    each = 2 * (60 * token + 72 * cell) + 96 * 60
    assert of(config()).prompts == 2 * each
    assert of(config(optimizer={"micro_batch_tokens": 59})).prompts == 0


def test_a_branch_of_ray_holds_itself():
    memory = of(config(engine={"type": "ray"}))
    assert (memory.weights, memory.optimizer) == (4000, 8000)


def test_compiled_products_count_in_bfloat16_on_a_cpu():
    half = config(model={"dtype": "bfloat16"})
    assert [of(half).kernels, of(config()).kernels, of(half, "cuda").kernels] == [KERNELS, 0, 0]
    held = of(half).phases["evaluation"] - of(config()).phases["evaluation"]
    assert held == pytest.approx(KERNELS, rel=1e-3)
    assert "compiled products" in report(half, 10**9).describe()
    assert "compiled products" not in report(config(), 10**9).describe()


def test_a_gpu_updates_all_parameters_at_once():
    memory = of(config(), "cuda")
    assert memory.phases["optimizer"] == 24_000 + memory.prompts + 8000


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("1.5 GiB", 3 * 2**29), ("7mb", 7 * 10**6)]
)
def test_sizes_of_memory(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["80", "GB", "-3GB", "many GB", "0GB"])
def test_what_is_no_size(text: str):
    with pytest.raises(ValueError, match="Correct --memory"):
        parse_size(text)


def report(settings: Config, capacity: int | None = None, **lengths: int):
    return memory_report(settings, build_plan(settings), capacity=capacity, **lengths)


def test_a_change_that_is_enough_is_named_with_what_it_saves():
    settings = config()
    whole = report(settings, 10**12)
    assert whole.memory is not None
    assert whole.changes == ()
    assert "it fits." in whole.describe()
    assert "MALLOC_MMAP_THRESHOLD_" in whole.describe()
    tight = report(settings, whole.memory.peak - 1)
    assert "Any one of these is enough" in tight.describe()
    for change in tight.changes:
        again = report(change.config, 10**12).memory
        assert again is not None
        assert again.peak == change.peak < whole.memory.peak


def test_changes_on_top_of_each_other_where_one_is_not_enough():
    def peak(changed: Config) -> int:
        saved = 30 * changed.model.gradient_checkpointing + 20 * (changed.model.branches == "lora")
        return 100 - saved

    changes = single_changes(config(), 60, peak, sees=False, device="cpu")
    assert [change.peak for change in changes] == [70, 80]
    taken = together(config(), 60, peak, changes)
    assert [change.peak for change in taken] == [70, 50]
    assert taken[1].setting == 'model.branches = "lora"'
    assert together(config(), 75, peak, changes) == taken[:1]
    assert "No change is enough" in report(config(), 1).describe()


def test_a_number_is_halved_until_it_fits():
    def peak(changed: Config) -> int:
        return changed.optimizer.micro_batch_tokens

    changes = single_changes(config(), 20, peak, sees=False, device="cpu")
    assert [(change.setting, change.peak) for change in changes] == [
        ("optimizer.micro_batch_tokens = 17", 17)
    ]


def test_a_model_that_is_not_here_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    text = report(config(model={"path": "owner/name"})).describe()
    assert "'owner/name' is not on this machine" in text
    # two branches: weights 4, moments 8 bytes each, and one gradient of 4
    assert "28 GB per billion" in " ".join(text.split())
    assert json.dumps(report(config(model={"path": "owner/name"})).to_dict())


def test_lengths_are_told_or_looked_at():
    told = report(config(), prompt_tokens=50, visual_tokens=20, completion_tokens=3).lengths
    assert told == Lengths(50, 20, 3, 50)
    looked = report(config()).lengths
    assert looked == Lengths(58, 0, 5, 79)  # 38 and at most 59 characters, and a template of 20
    with pytest.raises(ValueError, match="Raise --prompt-tokens"):
        report(config(), prompt_tokens=5, visual_tokens=6)


def test_shapes_of_the_embedded_base_cost_what_they_hold():
    from copd.planning.find import find_files

    files = find_files("tiny")
    assert files is not None
    memory = report(config()).memory
    assert memory is not None
    assert memory.weights == 2 * 4 * read_shapes(files).parameters

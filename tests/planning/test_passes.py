"""Bytes of passes and phases, against numbers worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from copd.config import Config, parse_config
from copd.planning import Expected, Report, memory_report, parse_size
from copd.planning.memory import ALL, Memory, estimate_memory
from copd.planning.passes import KERNELS, MOST_SCORES, Passes, drawn, logits
from copd.planning.phases import Phases
from copd.planning.remedies import single_changes, together
from copd.planning.shapes import Shapes, find_shapes
from copd.planning.workload import BranchStep, Lengths, Workload, find_workloads
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
)
LOAD = Workload(3, 4, 10, Lengths(5, 25, 5), longest_prompt=12)


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


def estimates(
    settings: Config, device: str = "cpu", *, loads: dict[str, Workload] | None = None
) -> dict[str, Memory]:
    loads = loads or {"a": LOAD, "b": LOAD}
    return estimate_memory(settings, build_plan(settings), SHAPES, loads, device=device)


def of(settings: Config, device: str = "cpu") -> Memory:
    found = estimates(settings, device)
    return found[ALL] if ALL in found else found["a"]


def test_a_layer_keeps_what_its_formula_says():
    # 4 (6 D + 4 I + 2 Q + 2 K + H) + 8 (Q + K)
    assert Passes(SHAPES, False).completion_layer == 4 * (48 + 48 + 24 + 12 + 4) + 8 * 18
    # two norms: 4 D four times, and five copies of 2 D; head norms 6 (Q + K); products; 4 H
    products = 2 * (4 * 12 + 2 * 12 + 2 * 6)
    assert Passes(SHAPES, True).completion_layer == 128 + 80 + 108 + products + 16


def test_checkpointing_keeps_a_layers_input_and_the_prompts_keys():
    # states of 5 tokens run and 6 predicted, two of each: 4 D (2 * 5 + 2 * 6)
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
def test_scores_are_cut_as_in_the_sampler(device):
    assert MOST_SCORES[device] == Pace.on(torch.device(device)).most_scores


def test_the_work_of_a_step():
    # mutual: each of two branches its own batch and one of the other's, which the other scores
    settings, other = config(), replace(LOAD, prompt_tokens=20)
    step = BranchStep.find(build_plan(settings).stages[1], "a", {"a": LOAD, "b": other})
    assert step == BranchStep((LOAD, other), (LOAD,), (other,))
    halved = BranchStep.find(build_plan(settings).stages[0], "b", {"a": LOAD, "b": other}, 2)
    assert halved == BranchStep((replace(other, num_prompts=2),), (), ())
    assert LOAD.problem_tokens == 30
    assert LOAD.micro_batch(70).num_prompts == 2


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
    assert "a snapshot" not in report(config()).describe()
    assert "2 x a snapshot to score" in report(config(recipe=stale)).describe()


def test_small_moments():
    assert of(config(optimizer={"type": "adamw_8bit"})).optimizer == 2 * 2000


def test_adapters_share_a_base():
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
    # RLVR alone has 3 prompts
    each = 2 * (30 * token + 36 * cell) + 96 * 30
    assert of(config(optimizer={"micro_batch_tokens": 59})).prompts == 2 * each
    assert of(config(optimizer={"micro_batch_tokens": 29})).prompts == 0


def test_a_branch_of_ray_holds_itself():
    memory = of(config(engine={"type": "ray"}))
    assert (memory.weights, memory.optimizer) == (4000, 8000)


def test_branches_have_the_work_of_their_domains():
    """Experts, each on its own domain; completions of b are longer."""
    settings = config(engine={"type": "ray"})
    plan = build_plan(settings)
    plan = replace(plan, stages=plan.stages[:1])
    loads = {"a": LOAD, "b": replace(LOAD, lengths=Lengths(60, 3600, 60))}
    found = estimate_memory(settings, plan, SHAPES, loads, device="cpu")
    same = estimate_memory(settings, plan, SHAPES, {"a": LOAD, "b": LOAD}, device="cpu")
    assert found["a"].phases == {**same["a"].phases, "evaluation": found["b"].phases["evaluation"]}
    assert found["b"].phases["update"] > same["b"].phases["update"] == same["a"].phases["update"]


def test_ranks_share_weights_and_problems():
    """Each gathers the whole weights in every phase, and holds a whole gradient in the update."""
    engine = {"type": "ray", "ranks_per_branch": 2}
    settings = config(engine=engine, rollout={"num_prompts": 4})
    whole = replace(LOAD, num_prompts=4)
    memory = estimates(settings, loads={"a": whole, "b": whole})["a"]
    assert (memory.weights, memory.optimizer, memory.gradients) == (2000, 4000, 4000)
    assert memory.gathered == 4000
    assert memory.phases["gathering"] == 2000 + 4000 + 2 * 4000
    alone = config(engine={"type": "ray"}, rollout={"num_prompts": 2})
    half = replace(LOAD, num_prompts=2)
    update = estimates(alone, loads={"a": half, "b": half})["a"].phases["update"]
    assert memory.phases["update"] == update - 12_000 + 6000 + 4000


def test_keys_of_completions_have_room_that_doubles():
    """12 rows, 2 layers, keys of width 6: of 300 tokens there is room for 512, on a CPU as well."""
    settings = config(rollout={"max_completion_tokens": 300, "max_rows": 12})
    load = replace(LOAD, lengths=Lengths(300, 300**2, 300))
    step = BranchStep((load,), (), ())
    for device, is_half, number, copies in (
        ("cpu", False, 4 + 4, 0),
        ("cpu", True, 4 + 2, 2 * (576 // 2 + 80)),
        ("cuda", False, 4 + 4, 0),
        # keys and values as computed, of prompts a copy; half as many again while they grow
        ("cuda", True, 2 + 2, 2 * (576 // 2 + 80) + 2 * 6 * 2 * 36),
    ):
        passes = Passes(SHAPES, is_half)
        sizes = Phases(settings, passes, device).step(step, 0)
        own = 12 * 512 * number * 6 * 2
        prompts = passes.prompt_keys(36)
        moment = own // 2 if device == "cuda" else 12 * 10 * 16
        assert sizes["cache"] == prompts + own
        assert sizes["sampling"] == own + moment + copies  # the prompts' graph holds their keys


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


def report(settings: Config, capacity: int | None = None, **lengths: int) -> Report:
    expected = Expected(**lengths)  # pyright: ignore[reportArgumentType]
    return memory_report(settings, build_plan(settings), capacity=capacity, expected=expected)


def peak_of(found: Report) -> int:
    return found.memory[ALL].peak


def test_a_change_that_is_enough_is_named_with_what_it_saves():
    settings = config()
    whole = report(settings, 10**12)
    assert whole.changes == ()
    assert "it fits." in whole.describe()
    assert "MALLOC_MMAP_THRESHOLD_" in whole.describe()
    tight = report(settings, peak_of(whole) - 1)
    assert "Any one of these is enough" in tight.describe()
    for change in tight.changes:
        again = peak_of(report(change.config, 10**12))
        assert again == change.peak < peak_of(whole)


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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = report(config(model={"path": "owner/name"})).describe()
    assert "'owner/name' is not on this machine" in text
    # two branches: weights 4, moments 8 bytes each, and one gradient of 4
    assert "28 GB per billion" in " ".join(text.split())
    assert json.dumps(report(config(model={"path": "owner/name"})).to_dict())


def test_lengths_are_expected_or_known_or_assumed():
    given = report(config(), prompt_tokens=50, visual_tokens=20, completion_tokens=3).workloads["a"]
    assert (given.prompt_tokens, given.visual_tokens, given.pictures) == (50, 20, 1)
    assert given.padded_prompt == 50
    assert given.lengths == Lengths.spread(3, 5, 0.5)
    # 38 and at most 59 characters, and a template of 20
    known = Workload(3, 4, 58, Lengths(5, 25, 5), longest_prompt=79)
    assert report(config()).workloads == {"a": known, "b": known}
    with pytest.raises(ValueError, match="Raise --prompt-tokens"):
        report(config(), prompt_tokens=5, visual_tokens=6)


def test_prompts_of_files_are_assumed_by_modality():
    files = {"type": "files", "path": "none", "verifier": {"type": "math"}}
    pictures = {**files, "columns": {"images": "image"}}
    settings = config(domains={"a": pictures, "b": {**files, "columns": {"videos": "clip"}}})
    loads = report(settings).workloads
    assert [(load.prompt_tokens, load.visual_tokens, load.pictures) for load in loads.values()] == [
        (1280, 1024, 1),
        (4352, 4096, 16),
    ]
    expected = Expected(prompt_tokens=300, domains={"a.visual_tokens": 40, "a.pictures": 2})
    changed = find_workloads(settings, find_shapes("tiny"), expected)
    assert (changed["a"].prompt_tokens, changed["a"].visual_tokens) == (340, 40)
    assert changed["b"].prompt_tokens == 300
    assert find_workloads(settings)["a"].visual_tokens == 0  # a model without a tower


def test_shapes_of_the_embedded_base_cost_what_they_hold():
    memory = report(config()).memory[ALL]
    assert memory.weights == 2 * 4 * find_shapes("tiny").parameters

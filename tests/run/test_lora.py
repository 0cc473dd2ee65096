"""Runs with adapters: killed and resumed, merged by every method, and exported."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from copd.policy import Policy
from copd.policy.tiny import resolve
from copd.run import commands
from tests.run.test_runner import end_state, newest, require_equal, run_and_die

LORA = {"path": "tiny", "device": "cpu", "branches": "lora", "lora": {"rank": 2, "alpha": 6.0}}
BRANCHES = ("text", "image", "video")


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory) -> Path:
    config = make_config(tmp_path_factory.mktemp("lora") / "run", model=LORA)
    commands.train(config)
    return config.output_dir


def changes(folder: Path) -> dict[str, torch.Tensor]:
    """Return the differences between a model's weights and the base's."""
    base = Policy.load(resolve("tiny")).parameters()
    with torch.no_grad():
        return {name: p - base[name] for name, p in Policy.load(folder).parameters().items()}


def adapter_changes(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weight changes of an exported adapter, from its files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    weights = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    assert config["rank_pattern"] == {}
    return {
        name.removeprefix("base_model.model.").replace("lora_A.", ""): (
            scale * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        )
        for name in weights
        if "lora_A" in name
    }


def test_the_merge_is_the_mean_of_the_changes(finished):
    each = [adapter_changes(finished / "adapters" / name) for name in BRANCHES]
    final = changes(finished / "final")
    for name, change in final.items():
        if name in each[0]:
            mean = torch.stack([own[name] for own in each]).mean(0)
            assert mean.abs().max() > 1e-5
            assert torch.allclose(change, mean, atol=1e-6)
        else:
            assert change.abs().max() == 0
    unified = adapter_changes(finished / "adapters" / "unified")
    assert all(torch.allclose(unified[name], final[name], atol=1e-6) for name in unified)


def test_a_run_exports_adapters_and_saves_small_checkpoints(finished):
    assert sorted(p.name for p in (finished / "adapters").iterdir()) == sorted(
        [*BRANCHES, "unified"]
    )
    assert set(json.loads((finished / "eval.json").read_text())) == {"base", *BRANCHES, "unified"}
    stored = newest(finished) / "text" / "model.safetensors"
    assert stored.stat().st_size < 0.1 * (finished / "final" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("method", "call"), [("update", 2), ("save", 5), ("score", 10), ("set_weights", 1)]
)
def test_a_killed_run_ends_with_the_same_bits(make_config, tmp_path, finished, method, call):
    config = make_config(tmp_path / "run", model=LORA)
    run_and_die(config, method, call)
    commands.resume(config.output_dir)
    require_equal(end_state(config.output_dir), end_state(finished))


@pytest.mark.parametrize(
    "merge",
    [
        {"type": "weighted", "weights": {"text": 3.0, "image": 1.0, "video": 0.0}},
        {"type": "task_arithmetic", "scale": 2.0},
        {"type": "ties", "density": 0.5},
        {"type": "dare", "density": 0.5},
        {"type": "validation", "grid": 1},
    ],
    ids=lambda merge: merge["type"],
)
def test_every_merge_equals_that_of_the_whole_weights(make_config, tmp_path, finished, merge):
    """Start from the checkpoint of a finished run, so that only the merge is repeated."""
    recipe = {"type": "copd", "rounds": 1, "rlvr_steps": 2, "opd_steps": 1, "merge": merge}
    config = make_config(tmp_path / "run", model=LORA, recipe=recipe)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(finished / "checkpoints")
    commands.train(config)
    final = changes(tmp_path / "run" / "final")
    each = [adapter_changes(finished / "adapters" / name) for name in BRANCHES]
    shares = json.loads((tmp_path / "run" / "merge.json").read_text())["shares"]
    for name in each[0]:
        deltas = torch.stack([own[name] for own in each])
        match merge["type"]:
            case "weighted":
                expected = 0.75 * deltas[0] + 0.25 * deltas[1]
            case "task_arithmetic":
                expected = 2.0 * deltas.mean(0)
            case "validation":
                assert sorted(shares.values()) == [0.0, 0.0, 1.0]
                expected = deltas[[*shares.values()].index(1.0)]
            case "ties":
                assert ((final[name].abs() < 1e-8).float().mean()) > 0.05
                largest = deltas.abs().max(0).values
                assert (final[name].abs() <= largest + 1e-6).all()
                continue
            case _:
                share = (final[name].abs() > 1e-8).float().mean()
                assert 0.5 < share < 0.97  # each entry loses all three with probability 1 / 8
                continue
        assert torch.allclose(final[name], expected, atol=1e-6)


def test_lora_settings_without_adapters_are_refused(make_config, tmp_path):
    with pytest.raises(ValueError, match=r'Set model\.branches = "lora"'):
        make_config(tmp_path, model={**LORA, "branches": "full"})

"""Which optimizer is built, and that its state outlives the process."""

import sys
from pathlib import Path

import pytest
import torch

from copd.branch.optimizer import build_optimizer
from copd.branch.state import load_optimizer, optimizer_state, save_optimizer
from copd.config import OptimizerConfig


def parameters() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"wide": (128, 64), "bias": (64,)}  # 8-bit moments only where there are 4096 numbers
    return {n: torch.nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}


def learn(own: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in own.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_a_stored_optimizer_goes_on_with_the_same_bits(tmp_path: Path, kind):
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    config = OptimizerConfig(type=kind, learning_rate=1e-2)
    first, again = parameters(), parameters()
    optimizer = build_optimizer(first, config)
    for step in range(3):
        learn(first, optimizer, step)
    save_optimizer(optimizer_state(first, optimizer, 3), tmp_path / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in again.items():
            parameter.copy_(first[name])
    resumed = build_optimizer(again, config)
    assert load_optimizer(again, resumed, tmp_path / "optimizer.safetensors") == 3
    for step in range(3, 6):
        learn(first, optimizer, step)
        learn(again, resumed, step)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_state_of_unknown_parameters_is_refused(tmp_path: Path):
    own = parameters()
    optimizer = build_optimizer(own, OptimizerConfig())
    learn(own, optimizer, 0)
    save_optimizer(optimizer_state(own, optimizer, 1), tmp_path / "optimizer.safetensors")
    other = {"narrow": own["wide"]}
    with pytest.raises(ValueError, match="unknown parameters"):
        load_optimizer(
            other, build_optimizer(other, OptimizerConfig()), tmp_path / "optimizer.safetensors"
        )


def test_eight_bits_without_their_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.optim", raising=False)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        build_optimizer(parameters(), OptimizerConfig(type="adamw_8bit"))

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


def learn(
    own: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    step: int,
    untouched: str | None = None,
) -> None:
    generator = torch.Generator().manual_seed(step)
    for name, parameter in own.items():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        if name == untouched:
            parameter.grad = None
    optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
@pytest.mark.parametrize("late", [None, "wide", "bias"])
def test_a_stored_optimizer_goes_on_with_the_same_bits(tmp_path: Path, kind, late):
    """Also where a parameter had its first gradient later than the others."""
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    config = OptimizerConfig(type=kind, learning_rate=1e-2)
    first, again = parameters(), parameters()
    optimizer = build_optimizer(first, config)
    for step in range(3):
        learn(first, optimizer, step, untouched=late if step < 2 else None)
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


def test_adamw_is_torchs_own():
    """In one pass or in ten, with decay and a first update of the size of the learning rate."""
    ours, theirs = parameters(), parameters()
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(ours, config)
    plain = torch.optim.AdamW(
        theirs.values(),
        lr=1e-2,
        betas=config.betas,
        eps=config.eps,
        weight_decay=0.1,
        foreach=False,
        fused=False,
    )
    for step in range(3):
        learn(ours, optimizer, step)
        learn(theirs, plain, step)
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)
    start = parameters()["wide"] * (1 - 1e-2 * 0.1)
    one = parameters()
    learn(one, build_optimizer(one, config), 0)
    torch.testing.assert_close(
        (one["wide"] - start).abs(), torch.full_like(start, 1e-2), rtol=1e-3, atol=0
    )


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

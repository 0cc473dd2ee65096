"""The one-file version of Algorithm 1 computes what the Runner does."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from copd.config import Config
from copd.run import commands
from copd.storage import read_lines
from examples import copd_loop


def make_config(output_dir: Path, *domains: str) -> Config:
    return Config.model_validate(
        {
            "output_dir": str(output_dir),
            "seed": 5,
            "model": {"path": "tiny", "device": "cpu"},
            "domains": {name: {"type": "digits", "modality": name} for name in domains},
            "recipe": {"type": "copd", "rounds": 2, "rlvr_steps": 1, "opd_steps": 2, "beta": 3.0},
            "rollout": {
                "num_prompts": 3,
                "group_size": 4,
                "max_completion_tokens": 24,
                "temperature": 0.9,
            },
            "loss": {"aggregation": "sequence", "clip_low": 0.1, "advantage_eps": 1e-3},
            "optimizer": {"learning_rate": 3e-4, "weight_decay": 0.1, "max_grad_norm": 0.5},
            # all tokens are probed, as in the loop
            "monitor": {"num_probe_tokens": 4096, "overlap_k": 5},
            "evaluation": {"num_problems": 2, "num_samples": 1},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("domains", [("text", "image"), ("text", "image", "video")])
def test_the_loop_equals_the_runner(tmp_path, domains):
    config = make_config(tmp_path / "run", *domains)
    policy, history = copd_loop.train(config)
    root = commands.train(config)
    lines = list(read_lines(root / "metrics.jsonl"))
    assert len(lines) == len(history) == 6
    for line, step in zip(lines, history, strict=True):
        for branch, metrics in step.items():
            assert len(metrics) >= 4
            expected = {key: line["branches"][branch][key] for key in metrics}
            assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6), (line["step"], branch)
    merged = load_file(root / "final" / "model.safetensors")
    for name, parameter in policy.parameters().items():
        torch.testing.assert_close(parameter.detach(), merged[name], rtol=1e-5, atol=1e-6)


def test_the_loop_runs_as_a_script(tmp_path, monkeypatch, capsys):
    config = make_config(tmp_path / "run", "text", "image")
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["copd_loop.py", str(path), "--recipe.rounds", "1"])
    copd_loop.main()
    output = capsys.readouterr().out
    assert output.count("\nstep") == 2 and "overlap" in output
    assert (tmp_path / "run" / "final" / "config.json").exists()

"""The GPU benchmark end to end at toy size, and the page it writes."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import FULL, TOY, least_of_phases
from benchmarks.gpu_page import page
from benchmarks.model import save_model


def test_it_runs_and_writes_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(["--device", "cpu", "--toy", "--rounds", "2", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "gpu.json").read_text())
    text = (tmp_path / "gpu.md").read_text()
    assert text == page(record) and text in capsys.readouterr().out
    assert record["step"]["sampled"] == 2 * 2 * 6
    assert len(record["runs"]) == 2 * 2 * 3
    assert all(run["seconds"] > 0 for run in record["runs"])
    header, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in (header, rule, *rows)} == {12}
    assert [row.split("|")[1].strip() for row in rows[:3]] == ["sampling", "scoring", "update"]


def test_a_page_without_results_says_so() -> None:
    committed = Path(__file__).parents[2] / "docs" / "gpu.md"
    assert "None yet" in page(None)
    if not committed.with_suffix(".json").exists():
        assert committed.read_text() == page(None)


def test_the_least_work_of_a_step_by_hand(tmp_path: Path) -> None:
    save_model(tmp_path, "toy")
    least, prompt = least_of_phases(tmp_path, TOY)
    run = prompt + 2 * 5  # of each prompt's completions the last token is never run
    pairs = prompt * (prompt + 1) // 2 + 2 * (5 * prompt + 5 * 6 // 2)
    weights = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96
    text = 2 * (2 * weights * run + 4 * 64 * pairs) + 2 * 64 * 128 * 2 * 6
    block = 2 * 16 * (32 * 96 + 32 * 32 + 2 * 32 * 48) + 4 * 32 * 16 * 16
    merger = 2 * 4 * (128 * 128 + 128 * 64)
    patches = 2 * 16 * (3 * 2 * 16 * 16) * 32
    vision = 2 * block + 2 * merger + patches
    assert least["sampling"] == least["scoring"] == 2 * (text + vision)
    assert least["update"] == 2 * (3 * (text + vision) - patches)


def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="--device cpu --toy"):
            gpu.main(["--out", str(tmp_path)])


def test_the_full_size_is_the_one_promised() -> None:
    assert (FULL.num_prompts, FULL.group_size, FULL.lengths) == (16, 8, (512, 512))
    height, width = FULL.media
    assert height * width == 1024 * 32 * 32

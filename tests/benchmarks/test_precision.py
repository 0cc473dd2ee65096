"""Two precisions of the same run, side by side on a page."""

from pathlib import Path

from benchmarks.precision import PRECISIONS, page, read_run, train

SETTINGS = [
    "--recipe.rounds=1",
    "--recipe.rlvr_steps=1",
    "--recipe.opd_steps=1",
    "--rollout.num_prompts=2",
    "--rollout.group_size=2",
    "--rollout.max_completion_tokens=6",
    "--evaluation.num_problems=2",
    "--evaluation.num_samples=1",
]


def test_a_run_in_bfloat16_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "bfloat16-0"
    words = ["--model.dtype=bfloat16", f"--output_dir={folder}", *SETTINGS]
    train(Path("configs/laptop.toml"), folder, words)
    run = read_run(folder)
    assert len(run["reward"]) == len(run["gap"]) == 2
    assert set(run["accuracy"]) == {"base", "text", "image", "video", "unified"}
    assert min(run["gap"]) > 1e-5  # bfloat16 was really used
    train(Path("configs/laptop.toml"), folder, words)  # finished: resumed without a step
    assert read_run(folder) == run


def test_a_page_has_a_column_per_run_and_means_of_tenths() -> None:
    def run(shift: float) -> dict:
        return {
            "reward": [step / 100 + shift for step in range(20)],
            "gap": [shift, shift, 9.0],
            "seconds": 7.2,
            "accuracy": {"base": 0.4, "merged": 0.8 + shift},
        }

    text = page({"float32": [run(0.0)], "bfloat16": [run(0.1)]}, [3], "# Title")
    assert "| steps | float32, seed 3 | bfloat16, seed 3 |" in text
    assert "| 1 to 2 | 0.005 | 0.105 |" in text
    assert "| 19 to 20 | 0.185 | 0.285 |" in text
    assert "| held-out accuracy, merged | 80.0 % | 90.0 % |" in text
    assert "| median sampler gap, nats | 0.0e+00 | 1.0e-01 |" in text
    assert list(PRECISIONS) == ["float32", "bfloat16"]

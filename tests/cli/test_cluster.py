"""`copd plan --cluster`: what it prints, takes and refuses. No torch is imported on the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from copd.cli import cluster, main
from copd.planning.cluster.machine import MACHINES
from copd.planning.shapes import QWEN3_VL_4B

CONFIG = str(Path(__file__).parents[2] / "configs" / "cluster.toml")


def plan(*words: str) -> int:
    return main(["plan", CONFIG, *words])


def predicted(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    assert plan("--cluster", "--json", *words) == 0
    return json.loads(capsys.readouterr().out)["cluster"]


def test_known_gpus_are_those_that_can_be_named():
    assert tuple(MACHINES) == cluster.GPUS


def test_the_table_has_a_row_per_stage_and_number_and_says_what_it_assumes(capsys):
    assert plan("--cluster", "h200", "--completion-tokens", "4096") == 0
    printed = capsys.readouterr().out
    rows = [
        line.split()[:3] for line in printed.splitlines() if line.startswith(("rlvr ", "mutual "))
    ]
    widths = [("3", "1"), ("8", "2"), ("24", "8"), ("64", "21")]
    assert rows == [[stage, *pair] for stage in ("rlvr", "mutual") for pair in widths]
    assert "Predicted, not measured" in printed and "Limit of mutual" in printed
    for name in ("decode_efficiency=0.25", "video.visual_tokens=4096", "text.mean=4096"):
        assert name in printed.replace("\n  ", " ")
    assert max(map(len, printed.splitlines())) <= 100


def test_assumptions_change_what_they_name(capsys):
    usual = predicted(capsys, "--gpus", "3")
    slow = predicted(capsys, "--gpus", "3", "--assume", "train_efficiency=0.175")
    for one, other in zip(usual, slow, strict=True):
        assert other["methods"]["sample"] == one["methods"]["sample"]
        for name, seconds in one["methods"]["update"].items():
            assert 1.9 * seconds < other["methods"]["update"][name] < 2 * seconds
    short = predicted(capsys, "--gpus", "3", "--assume", "video.visual_tokens=64")
    assert short[0]["methods"]["sample"]["video"] < usual[0]["methods"]["sample"]["video"]
    assert short[0]["methods"]["sample"]["text"] == usual[0]["methods"]["sample"]["text"]


def test_settings_of_the_model_and_the_optimizer_count(capsys):
    """Seconds of an update over those as configured, on one GPU a branch, and bytes of weights,
    moments and gradients."""
    usual = predicted(capsys, "--gpus", "3")[0]

    def changed(*words: str) -> float:
        found = predicted(capsys, "--gpus", "3", *words)[0]
        return round(found["methods"]["update"]["video"] / usual["methods"]["update"]["video"], 2)

    assert changed("--model.gradient_checkpointing", "false") == 0.75
    assert changed("--optimizer.type", "adamw_8bit") == 1
    assert changed("--model.frozen_vision", "true") == 0.99
    assert changed("--model.branches", "lora") == 0.75


def test_memory_follows_the_settings_and_the_number_of_gpus(capsys):
    """Short completions, so that weights decide."""
    short = ("--assume", *(f"{name}.mean=2" for name in ("text", "image", "video")))

    def peak(*words: str, gpus: int = 3) -> int:
        return max(predicted(capsys, "--gpus", str(gpus), *short, *words)[0]["memory"].values())

    weights, tower = QWEN3_VL_4B.parameters, QWEN3_VL_4B.tower_parameters
    usual = peak()
    assert usual - peak("--optimizer.type", "adamw_8bit") == 6 * weights
    assert usual - peak("--model.frozen_vision", "true") > 12 * tower
    assert peak("--model.branches", "lora") < usual - 12 * weights
    assert usual > peak(gpus=6) > peak(gpus=24)


def numbers_of_text(printed: str) -> dict[str, str]:
    """The size by branch, from the memory report."""
    words = printed.replace("\n  ", " ").partition("Peaks by branch: ")[2].partition(".\n")[0]
    return dict(peak.split(" ", 1) for peak in words.split("; "))


def numbers_of_table(printed: str) -> dict[str, str]:
    """The same from the table of the cluster, with a GPU for each branch."""
    rows = printed.partition("Memory of a GPU")[2].splitlines()[2:4]
    names, sizes = (line.replace(" GB", "_GB").split() for line in rows)
    assert names[0] == "GPUs" and sizes[:2] == ["3", "1"]
    return dict(zip(names[-3:], (size.replace("_", " ") for size in sizes[2:5]), strict=True))


@pytest.mark.parametrize("lengths", [(), ("--completion-tokens", "4000")], ids=["limit", "4000"])
@pytest.mark.parametrize("file", ["configs/cluster.toml", "examples/paper_qwen3_vl_4b/run.toml"])
def test_a_branch_has_one_number_for_its_memory(file: str, lengths: tuple[str, ...], capsys):
    words = ["plan", str(Path(CONFIG).parents[1] / file), *lengths]
    assert main([*words, "--cluster", "h100"]) == 0
    printed = capsys.readouterr().out
    assert main([*words, "--cluster", "h100", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    text = numbers_of_text(printed)
    assert list(text) == ["text", "image", "video"]
    assert text == numbers_of_table(printed) == numbers_of_text(capsys.readouterr().out)
    peaks = values["memory"]["peaks"]
    assert {name: f"{peak / 1e9:,.2f} GB" for name, peak in peaks.items()} == text
    alone = [row["memory"] for row in values["cluster"] if row["width"] == 1]
    assert alone == [peaks, peaks]
    assert values["memory"]["peak"] == max(peaks.values())


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--cluster", "--assume", "speed=3"), "See the end of its output"),
        (("--cluster", "--assume", "store=fast"), "Write for example"),
        (("--cluster", "--assume", "store=0"), "Pass another value"),
        (("--cluster", "--gpus", "2"), "Name larger numbers"),
        (("--gpus", "4"), "Add --cluster"),
        (("--cluster", "--model.path", "somewhere"), "name its folder in model.path"),
    ],
)
def test_mistakes_have_a_remedy(words, remedy, capsys):
    assert plan(*words) == 2
    assert remedy in capsys.readouterr().err


def test_the_embedded_base_has_sizes_too(capsys):
    laptop = str(Path(CONFIG).with_name("laptop.toml"))
    assert main(["plan", laptop, "--cluster", "a100", "--gpus", "3"]) == 0
    assert "0.7 M weights" in capsys.readouterr().out


def test_no_torch_is_needed():
    code = (
        "import sys; from copd.cli import main\n"
        f"main(['plan', {CONFIG!r}, '--cluster'])\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"

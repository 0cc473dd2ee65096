"""`copd plan --cluster`: what it prints, takes and refuses. No torch is imported on the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from copd.cli import cluster, main
from copd.planning.cluster import MACHINES, QWEN3_VL_4B

CONFIG = str(Path(__file__).parents[2] / "configs" / "cluster.toml")


def plan(*words: str) -> int:
    return main(["plan", CONFIG, *words])


def predicted(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    assert plan("--cluster", "--json", *words) == 0
    return json.loads(capsys.readouterr().out)["cluster"]


def test_known_gpus_are_those_that_can_be_named():
    assert tuple(MACHINES) == cluster.GPUS


def test_the_table_has_a_row_per_stage_and_number_and_tells_what_it_assumes(capsys):
    assert plan("--cluster", "h200", "--completion-tokens", "4096") == 0
    said = capsys.readouterr().out
    rows = [line.split()[:3] for line in said.splitlines() if line.startswith(("rlvr ", "mutual "))]
    widths = [("3", "1"), ("8", "2"), ("24", "8"), ("64", "21")]
    assert rows == [[stage, *pair] for stage in ("rlvr", "mutual") for pair in widths]
    assert "Predicted, not measured" in said and "Limit of mutual" in said
    for name in ("decode_efficiency=0.25", "video.visual_tokens=4096", "text.mean=4096"):
        assert name in said.replace("\n  ", " ")
    assert max(map(len, said.splitlines())) <= 100


def test_assumptions_change_what_they_name(capsys):
    usual = predicted(capsys, "--gpus", "3")
    slow = predicted(capsys, "--gpus", "3", "--assume", "train_efficiency=0.175")
    for one, other in zip(usual, slow, strict=True):
        assert other["verbs"]["sample"] == one["verbs"]["sample"]
        for name, seconds in one["verbs"]["update"].items():
            assert 1.9 * seconds < other["verbs"]["update"][name] < 2 * seconds
    short = predicted(capsys, "--gpus", "3", "--assume", "video.visual_tokens=64")
    assert short[0]["verbs"]["sample"]["video"] < usual[0]["verbs"]["sample"]["video"]
    assert short[0]["verbs"]["sample"]["text"] == usual[0]["verbs"]["sample"]["text"]


def test_settings_of_the_model_and_the_optimizer_count(capsys):
    """Seconds of an update over those as configured, and bytes saved, on one GPU a branch."""
    usual = predicted(capsys, "--gpus", "3")[0]

    def changed(*words: str) -> tuple[float, float]:
        found = predicted(capsys, "--gpus", "3", *words)[0]
        seconds = found["verbs"]["update"]["video"] / usual["verbs"]["update"]["video"]
        return round(seconds, 2), usual["memory"] - found["memory"]

    weights, tower = QWEN3_VL_4B.num_parameters, QWEN3_VL_4B.num_vision
    assert changed("--model.gradient_checkpointing", "false") == (0.75, 0)
    assert changed("--optimizer.type", "adamw_8bit") == (1, 6 * weights)
    assert changed("--model.frozen_vision", "true") == (0.99, 12 * tower)
    assert changed("--model.branches", "lora") == (0.75, 12 * weights)


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

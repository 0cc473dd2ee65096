"""The examples: each can be planned without its data, and the digits world from files is itself."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from copd.cli import main
from copd.storage import read_lines
from copd.types import Split
from scripts.make_files_example import write_domain

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CONFIGS = sorted([*(ROOT / "configs").glob("*.toml"), *EXAMPLES.rglob("*.toml")])
PAPER = EXAMPLES / "paper_qwen3_vl_4b"
DIGITS = EXAMPLES / "digits_files"
SIZES: dict[Split, int] = {"train": 4, "validation": 2, "test": 2}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_plan_accepts_every_configuration(path: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # where no data are
    assert main(["plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"]["total"]["sampled_tokens"] > 0


def test_the_papers_setting_has_the_papers_numbers(capsys):
    assert main(["plan", str(PAPER / "run.toml"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    cost, stages = told["cost"], told["plan"]["stages"]
    assert [(s["name"], s["steps"]) for s in stages] == [("rlvr", 15), ("mutual", 10)] * 8
    taught = {(a["branch"], a["teacher"]) for s in stages for a in s["actions"] if a.get("teacher")}
    spokes = ("image", "video")
    assert taught == {("text", s) for s in spokes} | {(s, "text") for s in spokes}
    batch = 256 * 8
    assert cost["branches"]["text"]["completions"] == 8 * (15 + 10 * 3) * batch
    assert cost["branches"]["video"]["completions"] == 8 * (15 + 10 * 2) * batch
    assert cost["branches"]["image"]["scored_tokens"] == 8 * 10 * batch * 16_384


def test_every_value_of_the_papers_setting_says_where_it_is_from():
    lines = (PAPER / "run.toml").read_text().splitlines()
    values = [line for line in lines if re.match(r"\w+ = ", line)]
    assert len(values) > 40
    plain = re.compile(r'(output_dir|type = "files"|columns = )')
    unsaid = [v for v in values if not re.search(r"# (paper|framework|open)", v)]
    assert [v for v in unsaid if not plain.match(v)] == []


def test_what_the_text_shows_of_the_plan_is_what_it_says(capsys):
    assert main(["plan", str(PAPER / "run.toml"), "--completion-tokens", "4000"]) == 0
    plan = capsys.readouterr().out.partition("\n\nSteps are")[0]
    assert plan in (PAPER / "README.md").read_text()


def test_the_two_digits_configurations_differ_in_their_domains_only():
    files, built_in = (
        tomllib.loads((DIGITS / f"{name}.toml").read_text()) for name in ("files", "built_in")
    )
    assert {key for key in files if files[key] != built_in[key]} == {"output_dir", "domains"}


@pytest.mark.slow
def test_a_step_on_pictures_and_clips_from_files_is_the_built_in_one(tmp_path: Path):
    words = ["--recipe.rounds", "1", "--recipe.rlvr_steps", "1", "--recipe.opd_steps", "1"]
    words += ["--rollout.num_prompts", "2", "--rollout.group_size", "2"]
    words += ["--evaluation.num_problems", "2", "--evaluation.num_samples", "1"]
    sizes = [
        word
        for modality in ("image", "video")
        for split, size in SIZES.items()
        for word in (f"--domains.{modality}.num_{split}", str(size))
    ]
    places = []
    for modality in ("image", "video"):
        write_domain(tmp_path / modality, modality, SIZES)
        places += [f"--domains.{modality}.path", str(tmp_path / modality)]
    for name, own in (("files", places), ("built_in", sizes)):
        run = ["train", str(DIGITS / f"{name}.toml"), "--output_dir", str(tmp_path / name)]
        assert main([*run, *words, *own]) == 0
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        mine, theirs = (list(read_lines(tmp_path / n / name)) for n in ("files", "built_in"))
        assert mine == theirs and len(mine) > 1
    mine, theirs = (
        (tmp_path / n / "final" / "model.safetensors").read_bytes() for n in ("files", "built_in")
    )
    assert mine == theirs

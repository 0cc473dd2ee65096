"""A run on the user's files trains as on the built-in domain, and checks that they stay equal."""

import json
from pathlib import Path

import pytest

from copd.run import commands
from copd.storage import read_lines
from copd.types import Split
from scripts.make_files_example import write_domain

SIZES: dict[Split, int] = {"train": 12, "validation": 4, "test": 4}
RECIPE = {"type": "experts", "steps": 2}


def test_a_run_on_files_is_the_run_on_the_built_in_domain(tmp_path: Path, make_config):
    write_domain(tmp_path / "data", "image", SIZES)
    sizes = {f"num_{split}": size for split, size in SIZES.items()}
    domains = {
        "files": {"type": "files", "path": str(tmp_path / "data")},
        "built_in": {"type": "digits", "modality": "image", **sizes},
    }
    for name, domain in domains.items():
        commands.train(make_config(tmp_path / name, domains={"image": domain}, recipe=RECIPE))
    mine, theirs = (list(read_lines(tmp_path / n / "rollouts.jsonl")) for n in domains)
    assert mine == theirs and len(mine) == 2
    mine, theirs = (list(read_lines(tmp_path / n / "metrics.jsonl")) for n in domains)
    assert mine == theirs
    section = json.loads((tmp_path / "files" / "config.json").read_text())["domains"]["image"]
    assert {key: section[key] for key in sizes} == sizes

    lines = (tmp_path / "data" / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data" / "train.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="Add problems"):
        commands.resume(tmp_path / "files")
    (tmp_path / "data" / "train.jsonl").write_text("".join(lines[::-1]))
    with pytest.raises(ValueError, match="Restore the files, or start a new run"):
        commands.resume(tmp_path / "files")


def test_a_run_without_a_correct_completion_reports_that_it_learned_nothing(
    tmp_path: Path, make_config, capsys
):
    rows = [{"problem": f"{n}+1=", "answer": "a word the base never writes"} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = {"type": "files", "path": str(tmp_path / "data.jsonl"), "test_share": 0.25}
    recipe = RECIPE | {"steps": 1}
    commands.train(make_config(tmp_path / "run", domains={"text": domain}, recipe=recipe))
    output = " ".join(capsys.readouterr().out.split())
    assert "text learned nothing from rewards on text: at every step (1) " in output

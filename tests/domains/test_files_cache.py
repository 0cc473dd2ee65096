"""The index of a files domain is built once for all processes of a run, and never when stale."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from copd.config import Config, load_config
from copd.domains import files, load_domains, with_sizes
from copd.domains.files.media import MediaReader

NUM_PICTURES = 40

RUN = """
output_dir = "{folder}/run"
[model]
path = "tiny"
device = "cpu"
[domains.mine]
type = "files"
path = "{folder}/data.jsonl"
validation_share = 0.2
test_share = 0.2
[recipe]
type = "experts"
steps = 1
[rollout]
num_prompts = 2
group_size = 2
max_completion_tokens = 4
[evaluation]
num_problems = 2
"""

STUDY = """
title = "Files"
output_dir = "{folder}/study"
base = "run.toml"
seeds = [0]
jobs = 2
common.checkpoint.every = 1
methods.experts.recipe = {{ type = "experts", steps = 1 }}
"""

COUNTER = """
from PIL import Image

def counted(source, *arguments, decode=Image.open, **settings):
    with open({log!r}, "a") as file:
        file.write(str(source) + "\\n")
    return decode(source, *arguments, **settings)

Image.open = counted
"""
"""As sitecustomize.py: every process logs the pictures it decodes."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a run on 40 pictures, its data, and a study of it."""
    chance = np.random.default_rng(0)
    lines = []
    for number in range(NUM_PICTURES):
        pixels = chance.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Pillow.fromarray(pixels).save(tmp_path / f"{number}.png")
        row = {"prompt": "<image>Which?", "images": [f"{number}.png"], "answer": str(number)}
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "data.jsonl").write_text("".join(lines))
    (tmp_path / "run.toml").write_text(RUN.format(folder=tmp_path))
    (tmp_path / "study.toml").write_text(STUDY.format(folder=tmp_path))
    (tmp_path / "counter").mkdir()
    (tmp_path / "counter" / "sitecustomize.py").write_text(
        COUNTER.format(log=str(tmp_path / "decoded.txt"))
    )
    return tmp_path


def decoded_by(folder: Path, *words: str) -> Counter[str]:
    """Run a Python process; return how often it and its children decoded each picture."""
    path = os.pathsep.join([str(folder / "counter"), *sys.path])
    command = [sys.executable, *words]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    log = folder / "decoded.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return Counter(lines)


LOAD = (
    "from copd.config import *; from copd.domains import *; from pathlib import Path; import sys; "
)
LOAD += "config = load_config(Path(sys.argv[1])); "


def test_two_processes_decode_each_picture_once(folder: Path):
    driver = decoded_by(folder, "-c", LOAD + "with_sizes(config, print)", str(folder / "run.toml"))
    assert driver.total() == len(driver) == NUM_PICTURES
    read = "load_domains(config.domains, config.output_dir)"
    assert decoded_by(folder, "-c", LOAD + read, str(folder / "run.toml")).total() == 0
    assert (
        decoded_by(folder, "-c", LOAD + "with_sizes(config, print)", str(folder / "run.toml")) == {}
    )


@pytest.mark.slow
def test_the_jobs_of_a_study_read_the_index_of_its_driver(folder: Path):
    counts = decoded_by(folder, "-m", "copd", "compare", str(folder / "study.toml"))
    assert len(list(folder.glob("study/**/index/mine.json.gz"))) == 2
    assert len(counts) == NUM_PICTURES
    assert sum(count == 1 for count in counts.values()) > NUM_PICTURES / 2, "those never sampled"
    again = decoded_by(folder, "-m", "copd", "compare", str(folder / "study.toml"))
    assert again.total() == 0, "the study is done, and its settings are unchanged"


@pytest.mark.slow
@pytest.mark.ray
def test_ray_ranks_and_a_resumed_run_read_the_index_of_the_driver(folder: Path):
    pytest.importorskip("ray", reason="needs the extra ray")
    words = ("-m", "copd", "train", str(folder / "run.toml"), "--engine.type", "ray")
    counts = decoded_by(folder, *words)
    assert len(counts) == NUM_PICTURES
    assert sum(count == 1 for count in counts.values()) > NUM_PICTURES / 2, "those never sampled"
    assert decoded_by(folder, "-m", "copd", "resume", str(folder / "run")).total() == 0


@pytest.fixture
def decode_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return a function that fills in sizes as a new process would, and counts the decodes."""
    count = 0
    read = MediaReader.read

    def counted(self, media):
        nonlocal count
        count += 1
        return read(self, media)

    monkeypatch.setattr(MediaReader, "read", counted)

    def decode(*overrides: str) -> int:
        before = count
        files._sources.cache_clear()
        files._index.cache_clear()
        with_sizes(config_of(folder, *overrides), print)
        return count - before

    return decode


def config_of(folder: Path, *overrides: str) -> Config:
    return load_config(folder / "run.toml", ["--domains.mine.drop_bad", "true", *overrides])


def replace_picture(folder: Path) -> None:
    Pillow.new("RGB", (16, 16), "red").save(folder / "0.png")


def remove_picture(folder: Path) -> None:
    (folder / "0.png").unlink()


def append_row(folder: Path) -> None:
    with (folder / "data.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "1+1?", "answer": "2"}) + "\n")


def cut_index(folder: Path) -> None:
    path = folder / "run/index/mine.json.gz"
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_bit(folder: Path) -> None:
    path = folder / "run/index/mine.json.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def write_other_json(folder: Path) -> None:
    (folder / "run/index/mine.json.gz").write_bytes(gzip.compress(b"[1]"))


@pytest.mark.parametrize(
    "change",
    [replace_picture, remove_picture, append_row, cut_index, flip_a_bit, write_other_json],
)
def test_a_stale_or_damaged_index_is_built_again(folder: Path, decode_anew, change):
    assert (decode_anew(), decode_anew()) == (NUM_PICTURES, 0)
    change(folder)
    remaining = len(list(folder.glob("*.png")))
    assert (decode_anew(), decode_anew()) == (remaining, 0)


def test_a_picture_that_comes_back_is_found(folder: Path, decode_anew):
    content = (folder / "0.png").read_bytes()
    (folder / "0.png").unlink()
    assert decode_anew() == NUM_PICTURES - 1
    (folder / "0.png").write_bytes(content)
    assert decode_anew() == NUM_PICTURES
    [domain] = load_domains(config_of(folder).domains, folder / "run").values()
    assert sum(domain.num_problems(split) for split in files.SPLITS) == NUM_PICTURES


def test_other_settings_build_another_index_and_sizes_do_not(folder: Path, decode_anew):
    assert decode_anew() == NUM_PICTURES
    assert decode_anew("--domains.mine.num_train", "5") == 0
    assert decode_anew("--domains.mine.max_pixels", "1000") == NUM_PICTURES


def test_a_stored_index_is_the_one_that_was_built(folder: Path, decode_anew):
    with (folder / "data.jsonl").open("a") as file:
        file.write('{"prompt": "no answer"}\n')
    decode_anew()
    section: Any = config_of(folder).domains["mine"]
    built = files.open_files("mine", section).index
    stored = files.open_files("mine", section, folder / "run").index
    assert stored is not built and len(stored.bad) == 1
    for name, value in vars(built).items():
        if name != "rows":
            assert getattr(stored, name) == value
    assert all(np.array_equal(stored.rows[split], built.rows[split]) for split in files.SPLITS)


def test_a_folder_that_cannot_be_written_costs_only_time(folder: Path, decode_anew):
    (folder / "run").write_text("a file")
    assert (decode_anew(), decode_anew()) == (NUM_PICTURES, NUM_PICTURES)

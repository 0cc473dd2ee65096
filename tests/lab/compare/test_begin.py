"""A run that begins where another one trained its experts ends with the bits of one left alone."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from copd.config.study import load_study
from copd.lab.compare.jobs import study_jobs
from copd.lab.compare.work import begin_after
from copd.storage import read_lines

MOPD = """
[methods.mopd]
recipe = { type = "mopd", expert_steps = 2, opd_steps = 2 }
"""


@pytest.fixture(scope="module")
def leader(study_file, run_alone, tmp_path_factory) -> Path:
    """Experts of three steps that kept their checkpoint after the second."""
    jobs = study_jobs(load_study(study_file()), tmp_path_factory.mktemp("leader"))
    config = next(job.config for job in jobs if job.method == "experts")
    return run_alone(config, config.output_dir)


@pytest.mark.parametrize("method", ["opd", "mopd"])
def test_shared_experts_change_no_bit(
    make_study, run_alone, end_state, leader: Path, tmp_path: Path, method: str
):
    jobs = study_jobs(make_study(more=MOPD), tmp_path)
    config = next(job.config for job in jobs if job.method == method)
    alone = run_alone(config, tmp_path / "alone")
    begin_after(config, leader, 2, Console(quiet=True))
    assert [p.name for p in (config.output_dir / "checkpoints").iterdir()] == ["step_00000002"]
    shared = run_alone(config, config.output_dir)
    expected, found = end_state(alone), end_state(shared)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert {p.name for p in shared.iterdir()} == {p.name for p in alone.iterdir()}
    assert [line["step"] for line in read_lines(shared / "timings.jsonl")] == [1, 2, 3, 4]


def test_seconds_of_shared_experts_go_by_their_tokens(make_study, leader: Path, tmp_path: Path):
    job = next(j for j in study_jobs(make_study(), tmp_path) if j.method == "opd")
    words = ["--methods.opd.recipe.student", "base", "--methods.opd.recipe.opd_steps", "4"]
    alone = next(j for j in study_jobs(make_study(*words), tmp_path / "one") if j.method == "opd")
    for each in (job, alone):
        begin_after(each.config, leader, 2, Console(quiet=True))
    whole = [line["seconds"] for line in read_lines(leader / "timings.jsonl")][:2]
    both = [line["seconds"] for line in read_lines(job.root / "timings.jsonl")]
    assert both == pytest.approx(whole, abs=1e-4)
    first = next(iter(read_lines(leader / "metrics.jsonl")))["cost"]
    tokens = {name: cost["trained_tokens"] for name, cost in first.items()}
    image = next(iter(read_lines(alone.root / "timings.jsonl")))["seconds"]
    assert image == pytest.approx(whole[0] * tokens["image"] / sum(tokens.values()), abs=1e-4)


def test_a_run_on_its_way_and_a_leader_without_the_step_are_left_alone(
    make_study, leader: Path, tmp_path: Path
):
    job = next(j for j in study_jobs(make_study(), tmp_path) if j.method == "opd")
    begin_after(job.config, leader, 1, Console(quiet=True))
    assert not job.root.exists()
    begin_after(job.config, leader, 2, Console(quiet=True))
    state = job.root / "checkpoints" / "step_00000002" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "mark": 1}))
    begin_after(job.config, leader, 2, Console(quiet=True))
    assert "mark" in json.loads(state.read_text())


def test_experts_beyond_the_budget_of_tokens_are_refused(make_study, leader: Path, tmp_path: Path):
    words = ["--equal", "tokens", "--tokens", "20", "--methods.experts.budget", "own"]
    job = next(j for j in study_jobs(make_study(*words), tmp_path) if j.method == "opd")
    with pytest.raises(ValueError, match=r"expected less than 20\. Lower recipe\.expert_steps\."):
        begin_after(job.config, leader, 2, Console(quiet=True))

"""Which jobs a study needs, what they share, and which comparisons are refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from copd.config.study import load_study
from copd.lab.compare.command import describe_study
from copd.lab.compare.jobs import Job, expert_columns, find_job, study_jobs
from copd.lab.compare.progress import check_unchanged, total_completions
from copd.lab.compare.sharing import Start

STUDIES = Path(__file__).parents[3] / "paper" / "studies"
LONGER = """
[methods.opd_long]
recipe = { type = "opd", student = "image", teacher = "text", expert_steps = 5, opd_steps = 1 }
budget = "own"
[methods.copd]
recipe = { type = "copd", rounds = 1, rlvr_steps = 2, opd_steps = 1 }
evaluation.branches = true
"""


def of(jobs: tuple[Job, ...], method: str, seed: int = 0) -> Job:
    return find_job(jobs, method, seed)


def test_experts_lead_the_methods_that_build_on_them(make_study, tmp_path: Path):
    jobs = study_jobs(make_study(), tmp_path)
    names = ["the base"] + [f"{m}, seed {s}" for s in (0, 1) for m in ("experts", "opd")]
    assert [job.name for job in jobs] == names
    experts, opd = of(jobs, "experts", 1), of(jobs, "opd", 1)
    assert (experts.start, opd.start) == (None, Start("experts", 2))
    assert experts.config.checkpoint.milestones == (2,)
    assert experts.root == tmp_path / "runs" / "experts" / "seed_1"
    assert (experts.config.seed, experts.config.engine.num_threads) == (1, 1)
    assert experts.columns == {
        "text": "expert text",
        "image": "expert image",
        "merge average": "experts: average",
    }
    assert opd.columns == {"text": "opd text <- image"}
    assert not opd.config.evaluation.base and not opd.config.evaluation.branches


def test_experts_that_no_method_has_as_its_result_are_added(make_study, tmp_path: Path):
    jobs = study_jobs(make_study(more=LONGER), tmp_path)
    hidden = of(jobs, "_experts1")
    assert (hidden.plan.total_steps, hidden.is_measured) == (5, False)
    assert hidden.config.checkpoint.milestones == (2, 3, 5)
    assert of(jobs, "experts").start == Start("_experts1", 3)
    assert of(jobs, "opd_long").start == Start("_experts1", 5)
    assert jobs.index(hidden) == 1
    assert of(jobs, "copd").start is None
    assert of(jobs, "copd").columns == {
        "unified": "copd",
        "text": "copd: branch text",
        "image": "copd: branch image",
    }


@pytest.mark.parametrize(
    "words",
    [
        ["--methods.opd.optimizer.learning_rate", "2e-3"],
        ["--methods.opd.rollout.num_prompts", "3"],
        ["--methods.opd.evaluation.every", "1"],
    ],
)
def test_experts_of_other_settings_are_not_shared(make_study, tmp_path: Path, words: list[str]):
    jobs = study_jobs(make_study(*words), tmp_path)
    assert [job.start for job in jobs] == [None] * 5


def test_distillation_may_differ_where_experts_are_shared(make_study, tmp_path: Path):
    jobs = study_jobs(make_study("--methods.opd.distill.type", "full"), tmp_path)
    assert of(jobs, "opd").start == Start("experts", 2)


def test_unequal_branch_steps_are_refused_or_declared(make_study, tmp_path: Path):
    with pytest.raises(ValueError, match=r"got experts 6, opd 7\. Change the recipes' steps"):
        study_jobs(make_study("--methods.opd.recipe.opd_steps", "3"), tmp_path)
    words = ["--methods.opd.recipe.opd_steps", "3", "--methods.opd.budget", "own"]
    study = make_study(*words)
    assert "7 (own)" in describe_study(study, study_jobs(study, tmp_path))


def test_a_budget_of_tokens_is_every_equal_methods_limit(make_study, tmp_path: Path):
    words = ["--equal", "tokens", "--tokens", "99", "--methods.experts.budget", "own"]
    jobs = study_jobs(make_study(*words), tmp_path)
    assert [of(jobs, m).config.max_tokens for m in ("experts", "opd")] == [None, 99]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods.opd.evaluation.num_samples", "2"], "evaluation.num_samples = 2 for 'opd'"),
        (["--methods.opd.domains.text.num_test", "99"], "Set it in common, or make two studies."),
        (["--methods.opd.label", "expert text"], "Change methods.opd.label."),
        (["--methods.opd.merges.x.type", "uniform"], "expected 'experts' or 'copd'. Remove it."),
        (
            ["--methods.experts.merges.x", "{type = 'weighted', weights = {text = 1.0}}"],
            "recipe.merge.weights must have exactly one value per branch",
        ),
    ],
)
def test_methods_that_are_not_comparable_are_refused(make_study, tmp_path: Path, words, sentence):
    with pytest.raises(ValueError) as caught:
        study_jobs(make_study(*words), tmp_path)
    assert sentence in str(caught.value)


def test_the_oracle_routes_to_the_first_experts(make_study, tmp_path: Path):
    study = make_study()
    columns = {"text": "expert text", "image": "expert image"}
    assert expert_columns(study, study_jobs(study, tmp_path)) == columns


def test_completions_leave_out_those_of_shared_experts(make_study, tmp_path: Path):
    jobs = study_jobs(make_study(), tmp_path)
    batch, measured = 2 * 2, 4 * 2
    assert total_completions(jobs[0]) == measured
    assert total_completions(of(jobs, "experts")) == 3 * 2 * batch + 3 * measured
    assert total_completions(of(jobs, "opd")) == 2 * batch + measured


def test_a_folder_made_with_other_settings_is_refused(make_study, tmp_path: Path):
    job = of(study_jobs(make_study(), tmp_path), "opd")
    job.root.mkdir(parents=True)
    (job.root / "config.json").write_text(job.config.model_dump_json())
    check_unchanged(job)
    check_unchanged(of(study_jobs(make_study("--common.checkpoint.every", "9"), tmp_path), "opd"))
    changed = make_study("--common.optimizer.weight_decay", "0.5")
    with pytest.raises(ValueError, match=r"got optimizer.weight_decay = 0.5, expected 0.01 as in"):
        check_unchanged(of(study_jobs(changed, tmp_path), "opd"))


def test_the_plan_has_the_cost_of_all_seeds(make_study, tmp_path: Path):
    study = make_study()
    text = describe_study(study, study_jobs(study, tmp_path))
    batch, measured, columns = 2 * 2, 4 * 2, 1 + 2 * (3 + 1)
    trained = 2 * (3 * 2 + 2) * batch
    total = f"{trained} completions to train on, {columns * measured} to measure."
    assert text.endswith(f"All seeds together: {total}")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_committed_study_can_be_planned(path: Path, tmp_path: Path):
    study = load_study(path)
    jobs = study_jobs(study, tmp_path)
    assert study.output_dir == Path("runs/studies") / path.stem
    assert len(jobs) >= 1 + len(study.seeds) * len(study.methods)


@pytest.mark.parametrize("name", ["two_branches", "three_branches"])
def test_a_study_is_described_at_once_and_without_torch(name: str, tmp_path: Path):
    code = f"""
import sys
from copd.cli import main
assert main(["compare", {str(STUDIES / name)!r} + ".toml", "--plan"]) == 0
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "of its 300 branch steps are trained there." in run.stdout
    assert list(tmp_path.iterdir()) == []

"""The tuned settings: which are chosen, and how they get into study files."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from copd.config.study import load_study
from copd.lab.study import Outcome, StudyResults, save_results
from copd.monitor.results import DomainResult
from copd.run.cost import COUNTS
from scripts.apply_tuning import apply, at_the_edge, chosen, main, tried

STUDIES = Path(__file__).parents[2] / "configs" / "studies"
CORRECT = {
    "mixed_1e4": 3,
    "mixed_2e4": 6,
    "mixed_4e4": 6,
    "copd_1e4": 5,
    "copd_2e4": 4,
    "copd_4e4": 2,
    "copd_2e4_beta2": 7,
}
"""Method of a tuning study to its correct answers of eight."""


@pytest.fixture
def results() -> StudyResults:
    names = load_study(STUDIES / "tuning_conflict.toml")
    study = {**names.model_dump(mode="json")}
    cost: dict[str, int] = dict.fromkeys(COUNTS, 1)
    outcomes = []
    for method, correct in CORRECT.items():
        accuracy = (1.0,) * correct + (0.0,) * (8 - correct)
        measured = {"text": DomainResult(("only",) * 8, accuracy, accuracy, 3.0)}
        outcomes.append(Outcome(method, method, 100, measured, cost, 1.0))
    return StudyResults("tuning", "branch_steps", {}, tuple(outcomes), (), {"study": study})


def test_the_best_setting_of_each_method_is_chosen_the_first_of_equals(results):
    best = chosen(tried(results))
    assert {m: (s.learning_rate, s.beta) for m, s in best.items()} == {
        "mixed": (2e-4, None),
        "copd": (2e-4, 2.0),
    }


def test_experts_are_chosen_by_what_they_do_on_their_own_domains(results):
    def measured(method, **correct):
        domains = {}
        for domain, number in correct.items():
            accuracy = (1.0,) * number + (0.0,) * (8 - number)
            domains[domain] = DomainResult(("only",) * 8, accuracy, accuracy, 3.0)
        name = method.partition(":")[0]
        return Outcome(method, name, 100, domains, dict.fromkeys(COUNTS, 1), 1.0)

    outcomes = (
        measured("experts_1e4", text=7, image=7),  # the better average
        measured("experts_1e4: branch text", text=5, image=1),
        measured("experts_1e4: branch image", text=8, image=4),
        measured("experts_2e4", text=2, image=2),
        measured("experts_2e4: branch text", text=6, image=1),
        measured("experts_2e4: branch image", text=1, image=5),
    )
    best = chosen(tried(replace(results, outcomes=outcomes)))["experts"]
    assert (best.learning_rate, best.accuracy.mean) == (2e-4, 11 / 16)


def test_a_best_rate_at_the_edge_is_named(results):
    assert at_the_edge(tried(results)) == []
    without = tuple(o for o in results.outcomes if o.method not in ("mixed_1e4", "copd_4e4"))
    assert at_the_edge(tried(replace(results, outcomes=without))) == ["mixed", "copd"]


def test_only_marked_numbers_of_a_tuned_world_change(results):
    found = {"conflict": chosen(tried(results))}
    text = """\
optimizer.learning_rate = 4e-4          # tuned: conflict/mixed
optimizer.learning_rate = 4e-4          # tuned: agree/mixed
optimizer.learning_rate = 4e-4
recipe = { type = "copd", rounds = 20, rlvr_steps = 3, beta = 8.0 }  # tuned: conflict/copd
recipe = { rounds = 8, beta = { text = 0.0, image = 8.0 } }  # tuned: conflict/copd
recipe = { type = "copd", rounds = 20, beta = 8.0 }
"""
    assert (
        apply(text, found)
        == """\
optimizer.learning_rate = 2e-4          # tuned: conflict/mixed
optimizer.learning_rate = 4e-4          # tuned: agree/mixed
optimizer.learning_rate = 4e-4
recipe = { type = "copd", rounds = 20, rlvr_steps = 3, beta = 2.0 }  # tuned: conflict/copd
recipe = { rounds = 8, beta = { text = 0.0, image = 2.0 } }  # tuned: conflict/copd
recipe = { type = "copd", rounds = 20, beta = 8.0 }
"""
    )


def test_a_mark_that_nothing_answers_is_refused(results):
    found = {"conflict": chosen(tried(results))}
    with pytest.raises(ValueError, match=r"got only mixed, copd\. Correct the mark"):
        apply("learning_rate = 4e-4  # tuned: conflict/mopd\n", found)


def test_an_unfinished_tuning_chooses_nothing(results):
    with pytest.raises(ValueError, match="copd_4e4, seed 100 missing"):
        tried(replace(results, missing=("copd_4e4, seed 100",)))


def test_every_mark_of_the_committed_studies_names_a_tuned_method():
    tuned = {m.rsplit("_", 1)[0] for m in load_study(STUDIES / "tuning_agree.toml").methods}
    marks = [
        mark
        for path in STUDIES.glob("*.toml")
        for mark in re.findall(r"# tuned: (\w+)/(\w+)$", path.read_text(), re.MULTILINE)
    ]
    assert len(marks) > 50
    assert {world for world, _ in marks} == {"agree", "conflict", "scarce"}
    assert {method for _, method in marks} <= tuned


def test_files_and_page_are_written(results, tmp_path: Path, capsys):
    (tmp_path / "configs" / "studies").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    file = tmp_path / "configs" / "studies" / "some.toml"
    file.write_text("learning_rate = 4e-4  # tuned: conflict/mixed\n")
    folder = tmp_path / "runs" / "tuning_conflict"
    folder.mkdir(parents=True)
    save_results(folder / "results.json", results)
    assert main(["--studies", str(tmp_path / "runs"), "--root", str(tmp_path)]) == 0
    assert file.read_text() == "learning_rate = 2e-4  # tuned: conflict/mixed\n"
    page = (tmp_path / "docs" / "tuning.md").read_text()
    assert "| mixed | 2e-4 |  | **75.0" in page and "| copd | 2e-4 | 2 | **87.5" in page
    assert "| mixed | 4e-4 |  | 75.0" in page
    assert "not tuned yet: agree" in capsys.readouterr().err

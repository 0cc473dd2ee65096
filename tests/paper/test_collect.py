"""Results are collected in paper/results, and parts that ran apart are joined."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from copd.lab.study import StudyResults, load_results
from paper.__main__ import main
from paper.collect import collect, in_order, join
from paper.load import NAMES, find
from paper.measures import mean_cosines

CORRECT = {"base": 80, "mixed": 150, "copd": 160}
PLANNED = {"mixed": {"steps": 2}, "copd": {"rounds": 1}}


@pytest.fixture
def part(tmp_path: Path, put) -> Callable[..., StudyResults]:
    """The results of a study of which only some seeds or methods ran."""

    def ran(*columns: str, seeds=(0, 1, 2), missing=(), planned=PLANNED) -> StudyResults:
        own = {column: {"text": CORRECT[column]} for column in columns or CORRECT}
        methods = {name: planned[name] for name in own if name != "base"}
        root = put(tmp_path / "part", own, seeds=seeds, missing=missing, methods=methods)
        return load_results(root / "results.json")

    return ran


def measured(results: StudyResults) -> list[tuple]:
    return [(o.column, o.method, o.seed, o.domains) for o in results.outcomes]


def test_seeds_that_ran_apart_are_joined(part):
    early, late = part(seeds=(0, 1), missing=["mixed, seed 1"]), part(seeds=(1, 2))
    joined = join(early, late, name="tiny")
    assert measured(joined) == measured(part())
    assert joined.missing == ()
    assert joined.settings["study"] == part().settings["study"]
    assert measured(join(late, early, name="tiny")) == measured(part())


def test_what_no_part_has_finished_is_still_missing(part):
    early = part("mixed", "copd", seeds=(0,), missing=["the base", "mixed, seed 0"])
    late = part("base", "copd", seeds=(0,), missing=["mixed, seed 0", "copd, seed 0"])
    assert join(early, late, name="tiny").missing == ("mixed, seed 0",)


def test_a_method_that_was_added_later_is_joined(part):
    joined = join(part("base", "copd"), part("base", "mixed"), name="tiny")
    assert joined.columns == ("base", "copd", "mixed")
    assert set(joined.settings["study"]["methods"]) == {"mixed", "copd"}
    assert set(joined.settings["shared_experts"]) == {"mixed", "copd"}
    assert measured(in_order(joined, ["experts", "mixed", "copd"])) == measured(part())


def test_parts_of_different_studies_are_refused(part, tmp_path: Path, put, capsys):
    other = part(planned=PLANNED | {"copd": {"rounds": 2}})
    with pytest.raises(ValueError, match=r"tiny .* another study: methods.copd differ"):
        join(part(), other, name="tiny")
    studies, paper = tmp_path / "studies", tmp_path / "paper"
    put(paper / "results" / "beta", {"copd": {"text": 160}}, methods={"copd": {"rounds": 1}})
    put(studies / "beta", {"copd": {"text": 170}}, methods={"copd": {"rounds": 2}})
    assert main(["--studies", str(studies), "--folder", str(paper)]) == 1
    assert "the collected results of beta are of another study" in capsys.readouterr().err
    assert not (paper / "results.md").exists()


def test_the_page_is_made_from_collected_results(tmp_path: Path, put, put_lines):
    studies, paper = tmp_path / "studies", tmp_path / "paper"
    root = put(studies / "divergence", {"mixed": {"text": 150, "image": 150}})
    cosines = {"update/cosine/rlvr/text|rlvr/image": 0.25}
    line = {"step": 1, "branches": {"unified": {**cosines, "update/loss": 1.0}}}
    for seed in range(3):
        put_lines(root / "runs" / "mixed" / f"seed_{seed}" / "metrics.jsonl", [line])
    assert main(["--studies", str(studies), "--folder", str(paper)]) == 0
    first = (paper / "results.md").read_bytes()
    copied = paper / "results" / "divergence" / "runs" / "mixed" / "seed_2" / "metrics.jsonl"
    assert json.loads(copied.read_text()) == {"step": 1, "branches": {"unified": cosines}}
    assert main(["--studies", str(tmp_path / "gone"), "--folder", str(paper)]) == 0
    assert (paper / "results.md").read_bytes() == first
    collect(studies, paper / "results")
    found = find(paper / "results")["divergence"]
    assert mean_cosines(found)["text, image"].mean == pytest.approx(0.25)


def test_the_collected_results_can_be_read():
    paths = sorted((Path(__file__).parents[2] / "paper" / "results").glob("*/results.json"))
    assert paths
    assert {path.parent.name for path in paths} <= set(NAMES)
    for path in paths:
        assert load_results(path).outcomes, path

"""The page of results: verdicts on known numbers, and a page from whatever is finished."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from copd.cli import main as copd_main
from copd.config.study import load_study
from copd.lab.compare.jobs import study_jobs
from copd.lab.compare.work import run_job
from copd.monitor.results import Estimate
from paper.__main__ import main
from paper.claims import NEAR, Claim, Part, judge, world_limits
from paper.load import between_branches, find, over_seeds, to_base
from paper.measures import dynamics_claims, mean_cosines, pilot
from paper.page import all_claims, page

EXPERTS = {"text": "expert text", "image": "expert image"}
COLUMNS = {
    "base": {"text": 80, "image": 80},
    "expert text": {"text": 180, "image": 70},
    "expert image": {"text": 70, "image": 180},
    "mixed": {"text": 150, "image": 180},
    "opd text <- image": {"text": 120, "image": 120},
    "mopd": {"text": 160, "image": 160},
    "copd": {"text": 179, "image": 100},
}


def comparison(step: int, overlap: float) -> dict:
    """A line of dynamics.jsonl of two branches."""
    rows = [[1.0, overlap, 0.9], [overlap, 1.0, 0.7], [None] * 3]
    matrices = {"overlap": rows, "symmetric_kl": rows}
    models = ["text", "image", "base"]
    return {"step": step, "models": models, "domains": {"text": matrices, "image": matrices}}


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (0.001, 0.02, 0.0, "holds"),
        (-0.02, -0.001, 0.0, "fails"),
        (-0.02, 0.02, 0.0, "open"),
        (0.0, 0.0, 0.0, "open"),
        (-0.009, 0.02, NEAR, "holds"),
        (-0.009, -0.001, NEAR, "holds"),
        (-0.011, 0.02, NEAR, "open"),
        (-0.03, -0.001, NEAR, "fails"),
    ],
)
def test_a_verdict_is_where_the_interval_is(low: float, high: float, margin: float, verdict: str):
    assert judge(Estimate((low + high) / 2, low, high), margin=margin) == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (("holds", "holds"), "holds"),
        (("fails", "fails"), "fails"),
        (("holds", "fails"), "in part"),
        (("holds", "open"), "in part"),
        (("open", "open"), "open"),
    ],
)
def test_a_claim_holds_where_all_its_parts_do(parts, verdict):
    assert Claim("c", "s", tuple(Part("p", "1", part) for part in parts)).verdict == verdict


def test_intervals_over_seeds_are_students():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert math.isinf(over_seeds([1.0]).high)


def test_overlap_is_on_cross_batches_and_with_the_base():
    line = comparison(0, 0.8)
    line["domains"]["text"] = {"overlap": [[1.0, 0.1, 0.6], [0.4, 1.0, 0.2], [None] * 3]}
    assert between_branches(line, "overlap") == pytest.approx((0.8 + 0.4) / 2)
    assert to_base(line, "overlap") == pytest.approx((0.6 + 0.7) / 2)


def test_claims_follow_from_the_tables(tmp_path: Path, put):
    put(tmp_path / "three_branches", COLUMNS, experts=EXPERTS)
    listed = {claim.text: claim for claim in all_claims(find(tmp_path))}
    mixed = listed["mixed RLVR is below the experts on their own domain"]
    assert [part.verdict for part in mixed.parts] == ["holds", "open"]
    assert mixed.parts[0].text == "expert text - mixed on text"
    assert mixed.parts[0].value.startswith("+15.0")
    static = listed["static OPD and MOPD are below CoPD"]
    assert [part.verdict for part in static.parts] == ["holds", "fails"]
    own = listed["CoPD is at or above each expert on its own domain"]
    assert [part.text for part in own.parts] == [
        "copd - expert text on text",
        "copd - expert image on image",
    ]
    assert own.parts[1].verdict == "fails"


def test_ablations_speak_of_frozen_teachers_too(tmp_path: Path, put):
    untaught = {"copd: text untaught": {"text": 60, "image": 100}}
    put(tmp_path / "ablations", COLUMNS | untaught)
    listed = {claim.text: claim for claim in all_claims(find(tmp_path))}
    [static] = listed["static OPD and MOPD are below CoPD"].parts
    assert (static.text, static.verdict) == ("copd - mopd", "fails")
    [direction] = listed["each OPD direction adds"].parts
    assert (direction.text, direction.verdict) == ("copd - copd: text untaught", "holds")
    assert "the merge adds to every branch" not in listed


def test_what_limits_copd_is_coupling_and_the_merge(tmp_path: Path, put):
    branches = {
        "copd: branch text": {"text": 190, "image": 60},
        "copd: branch image": {"text": 60, "image": 150},
    }
    put(tmp_path / "three_branches", COLUMNS | branches, experts=EXPERTS)
    own = find(tmp_path)["three_branches"]
    found = {p.text: (p.value[:5], p.verdict) for p in world_limits(own.summary, EXPERTS)}
    assert found == {
        "copd: branch text - expert text on text": ("+5.0 ", "holds"),
        "copd: branch image - expert image on image": ("-15.0", "fails"),
        "copd - copd: branch text on text": ("-5.5 ", "fails"),
        "copd - copd: branch image on image": ("-25.0", "fails"),
    }
    assert "What limits it" in page(find(tmp_path), {})
    put(tmp_path / "three_branches", COLUMNS, experts=EXPERTS)
    assert "What limits it" not in page(find(tmp_path), {})


def test_more_steps_are_a_section_of_their_own_with_both_rates(tmp_path: Path, put):
    put(tmp_path / "world_agree", COLUMNS, experts=EXPERTS)
    assert "three times the steps" not in page(find(tmp_path), {})
    half = {"copd, half the rate": {"text": 190, "image": 190}}
    put(tmp_path / "three_branches_long", COLUMNS | half, experts=EXPERTS)
    text = page(find(tmp_path), {})
    own = text[text.index("### World conflict, three times the steps") : text.index("## Power")]
    assert re.search(r"\| copd - mixed \| -12.8 .* \| behind \|", own)
    assert re.search(r"\| copd, half the rate - mixed \| \+12.5 .* \| ahead \|", own)
    assert re.search(r"\| copd, half the rate - copd \| \+25.2 .* \| ahead \|", own)
    assert own.count("routed oracle - base") == 1
    listed = [c for c in all_claims(find(tmp_path)) if c.study == "three_branches_long"]
    [first, second] = [c for c in listed if c.text == "static OPD and MOPD are below CoPD"]
    assert (first.parts[1].text, first.parts[1].verdict) == ("copd - mopd", "fails")
    assert (second.parts[1].text, second.verdict) == ("copd, half the rate - mopd", "holds")


def test_dynamics_are_compared_at_the_last_common_step(tmp_path: Path, put, put_lines):
    root = put(tmp_path / "dynamics", {"copd": COLUMNS["copd"]})
    for seed in range(3):
        for method, last in (("copd", 0.95), ("experts", 0.6)):
            lines = [comparison(0, 1.0), comparison(10, last + 0.01 * seed), comparison(20, 0.0)]
            own = lines if method == "copd" else lines[:2]
            put_lines(root / "runs" / method / f"seed_{seed}" / "dynamics.jsonl", own)
    [claim] = dynamics_claims(find(tmp_path)["dynamics"])
    assert claim.verdict == "holds"
    assert claim.parts[0].text == "coupled - independent at step 10"
    assert claim.parts[0].value.startswith("+0.350")
    assert claim.parts[1].value.startswith("+0.390")


def test_the_page_names_what_is_there_and_what_is_not(tmp_path: Path, put, put_lines):
    studies, docs = tmp_path / "studies", tmp_path / "docs"
    put(studies / "three_branches", COLUMNS, experts=EXPERTS, missing=["copd, seed 3"])
    better = {**COLUMNS, "band": {"text": 190, "image": 190}}
    put(studies / "remedies_conflict", better)
    put(studies / "remedies_scarce", better)
    put(studies / "world_scarce", better)
    put(studies / "ratio", {"5 : 0": {"text": 90}, "3 : 2": {"text": 150}, "4 : 1": {"text": 151}})
    root = put(studies / "divergence", {"mixed": COLUMNS["mixed"]})
    for seed in range(3):
        lines = [
            {"step": s, "branches": {"unified": {"update/cosine/rlvr/text|rlvr/image": 0.25}}}
            for s in range(1, 31)
        ]
        put_lines(root / "runs" / "mixed" / f"seed_{seed}" / "metrics.jsonl", lines)
    assert mean_cosines(find(studies)["divergence"])["text, image"].mean == pytest.approx(0.25)

    assert main(["--studies", str(studies), "--folder", str(docs)]) == 0
    text = (docs / "results.md").read_text()
    assert "- no results yet: world_agree" in text
    assert "- not finished: three_branches lacks copd, seed 3" in text
    assert "Chosen on validation problems: band. It is not confirmed yet." in text
    [short] = [line for line in text.splitlines() if line.startswith("| three_branches | 40.0")]
    means = [cell.split()[0] for cell in short.split("|")[2:-1]]
    assert means == ["40.0", "\u2013", "80.5", "70.2", "\u2013", "\u2013", "83.0", "90.5"]
    [short] = [line for line in text.splitlines() if line.startswith("| world_scarce | 40.0")]
    assert re.search(r"\| 95\.5 ±\d\.\d \(band\) \| 83\.0 ", short)
    assert "Chosen on validation problems: band. On fresh seeds and test problems:" in text
    assert text.count("<details>") == text.count("</details>") == len(find(studies))
    assert "3 : 2 is near the best ratio" in text
    assert "text, image: mean cosine +0.250" in text
    assert "copd compare paper/studies/ratio.toml    # seeds 0, 1, 2" in text
    assert "three_branches: torch 2.13.0; a laptop" in text
    for name in ("worlds", "ratio", "divergence"):
        assert f"](figures/{name}.svg)" in text
        ElementTree.parse(docs / "figures" / f"{name}.svg")
    first = (docs / "figures" / "worlds.svg").read_bytes()
    assert main(["--studies", str(studies), "--folder", str(docs)]) == 0
    assert (docs / "figures" / "worlds.svg").read_bytes() == first


def test_nothing_finished_is_said_and_writes_nothing(tmp_path: Path, capsys):
    assert main(["--studies", str(tmp_path), "--folder", str(tmp_path / "docs")]) == 1
    assert "has results.json" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


COMMON = """
title = "Tiny"
output_dir = "{root}"
seeds = [0, 1]
[common]
model = {{ path = "tiny", device = "cpu" }}
rollout.max_completion_tokens = 8
domains.text = {{ type = "digits", modality = "text", num_train = 50 }}
optimizer.learning_rate = 3e-3
evaluation.num_samples = 1
"""
REAL = {
    "pilot": """
monitor = { every = 2, num_problems = 2 }
evaluation.every = 2
evaluation.num_problems = 24
rollout.num_prompts = 2
rollout.group_size = 2
[methods.pilot.recipe]
type = "pilot"
domain = "text"
temperatures = [0.5, 1.0, 2.5]
expert_steps = 1
student_steps = 1
opd_steps = 1
""",
    "dynamics": """
domains.image = { type = "digits", modality = "image", num_train = 50 }
monitor = { every = 2, num_problems = 2 }
evaluation.num_problems = 4
rollout.num_prompts = 2
rollout.group_size = 2
[methods.experts]
recipe = { type = "experts", steps = 2 }
[methods.copd]
recipe = { type = "copd", rounds = 1, rlvr_steps = 1, opd_steps = 1 }
""",
    "divergence": """
domains.image = { type = "digits", modality = "image", num_train = 50 }
monitor.gradient_cosine = true
evaluation.num_problems = 4
rollout.num_prompts = 4
rollout.group_size = 8
[methods.mixed]
recipe = { type = "mixed", steps = 2 }
""",
}
"""Study to its settings, those of `common` first: as small as they can be."""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of small studies that were really run, as `copd compare` does in a process a job."""
    folder = tmp_path_factory.mktemp("studies")
    for name, settings in REAL.items():
        path = folder / f"{name}.toml"
        path.write_text(COMMON.format(root=folder / name) + settings)
        study = load_study(path)
        jobs = study_jobs(study, study.output_dir)
        for job in jobs:
            job.root.mkdir(parents=True)
            run_job(job, jobs)
        assert copd_main(["compare", str(path), "--tables"]) == 0
    return folder


def test_real_studies_are_on_the_page(real: Path, tmp_path: Path):
    assert main(["--studies", str(real), "--folder", str(tmp_path)]) == 0
    text = (tmp_path / "results.md").read_text()
    assert "| the gain from OPD grows with overlap | pilot |" in text
    assert "r of 6 students" in text
    assert "r of gain and overlap at equal room" in text
    assert "coupled - independent at step 2" in text
    assert "- text, image: mean cosine" in text
    settings = json.loads((real / "pilot" / "results.json").read_text())["settings"]
    assert f"torch {settings['versions']['torch']}" in text
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert drawn == {"pilot", "dynamics", "divergence"}


def test_a_pilot_of_two_seeds_has_a_point_for_each_student(real: Path):
    measured = pilot(find(real)["pilot"])
    assert measured is not None
    runs, found = measured
    assert [[p.seed for p in own] for own in runs] == [[0] * 3, [1] * 3]
    assert (found.num_points, found.num_runs) == (6, 2)

"""The file of a study's results: complete, compact, and refused when it is not whole."""

import base64
import dataclasses
import json
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from copd.lab.study import StudyResults, load_results, save_results

REMEDY = "Run copd compare on the study again"


def plain(results):
    return dataclasses.asdict(results)


@pytest.fixture
def study(make_study):
    rng = np.random.default_rng(0)
    shape = {"text": (2, 6), "image": (2, 4)}
    suites = {"text": ["a", "b"] * 3, "image": ["a"] * 4}
    values = {
        name: {d: rng.integers(0, 4, size) / 3 for d, size in shape.items()}
        for name in ("mixed", "copd")
    }
    return make_study(
        {"base": {"text": np.ones(6), "image": np.zeros(4)}, **values},
        suites=suites,
        experts={"text": "copd", "image": "copd"},
        missing=("mopd, seed 3",),
    )


def test_what_was_saved_is_loaded_to_the_last_bit(study, tmp_path):
    save_results(tmp_path / "results.json", study)
    assert plain(load_results(tmp_path / "results.json")) == plain(study)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.integers(1, 255), st.integers(1, 9), st.randoms())
def test_any_share_of_samples_survives(make_study, tmp_path, samples, size, random):
    accuracy = np.array([[random.randint(0, samples) / samples for _ in range(size)]])
    study = make_study({"mixed": {"text": accuracy}})
    save_results(tmp_path / "results.json", study)
    assert plain(load_results(tmp_path / "results.json")) == plain(study)


@pytest.mark.parametrize("samples", [1, 4])
def test_sixteen_columns_of_five_seeds_stay_below_two_megabytes(make_study, tmp_path, samples):
    """So an outcome of 16,000 problems in three domains has 25,000 bytes; noise packs worst."""
    rng = np.random.default_rng(0)
    values = {f"column {c}": {"text": rng.binomial(samples, 0.6, (1, 16_000))} for c in range(3)}
    shares = {c: {"text": own["text"] / samples} for c, own in values.items()}
    save_results(tmp_path / "results.json", make_study(shares))
    assert (tmp_path / "results.json").stat().st_size < 3 * 25_000 / 3


def test_files_of_version_1_are_read(study, tmp_path):
    """There, correct samples were counted in bytes."""

    def bytes_of(values, kind):
        return base64.b64encode(zlib.compress(np.array(values, kind).tobytes())).decode("ascii")

    path = tmp_path / "results.json"
    save_results(path, study)
    data = json.loads(path.read_text()) | {"version": 1, "domains": {}}
    for domain, column in data.pop("suites").items():
        names, suites = column["distinct"], study.problems[domain]
        data["domains"][domain] = {
            "suites": names,
            "suite_of": bytes_of([names.index(suite) for suite in suites], "<u2"),
            "num_problems": len(suites),
            "num_samples": 3,
        }
    for own, outcome in zip(data["outcomes"], study.outcomes, strict=True):
        for domain, result in outcome.domains.items():
            counts = np.rint(3 * np.array(result.accuracy))
            own["domains"][domain] = {"correct": bytes_of(counts, "<u1"), "length": result.length}
    path.write_text(json.dumps(data))
    assert plain(load_results(path)) == plain(study)


def cut(text):
    return text[: len(text) // 2]


def edited(change):
    def apply(text):
        data = json.loads(text)
        change(data)
        return json.dumps(data)

    return apply


def column(data, domain="text"):
    return data["outcomes"][1]["domains"][domain]["accuracy"]


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda _: "[]",
        edited(lambda d: d.update(version=3)),
        edited(lambda d: d.pop("missing")),
        edited(lambda d: d.update(extra=1)),
        edited(lambda d: d["outcomes"][0].update(seed="0")),
        edited(lambda d: d["outcomes"][0].update(extra=1)),
        edited(lambda d: d["outcomes"][0]["cost"].pop("steps")),
        edited(lambda d: d["outcomes"][0]["cost"].update(steps=-1)),
        edited(lambda d: d["outcomes"].append(d["outcomes"][0])),
        edited(lambda d: column(d).update(packed=column(d)["packed"][:-8])),
        edited(lambda d: column(d).update(packed="!" + column(d)["packed"][1:])),
        edited(lambda d: column(d).update(packed=column(d, "image")["packed"])),
        edited(lambda d: column(d).update(distinct=column(d)["distinct"][:1])),
        edited(lambda d: column(d).update(distinct=[*map(str, column(d)["distinct"])])),
        edited(lambda d: d["suites"]["text"].update(distinct=["a"])),
        edited(lambda d: d["suites"].pop("image")),
        edited(lambda d: d.update(outcomes="none")),
    ],
)
def test_a_damaged_file_is_refused_with_a_remedy(study, tmp_path, damage):
    path = tmp_path / "results.json"
    save_results(path, study)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=REMEDY):
        load_results(path)


def test_results_that_contradict_themselves_are_refused(study, make_study):
    def change(**fields):
        return dataclasses.replace(study, **fields)

    first = study.outcomes[0]
    with pytest.raises(ValueError, match="need at least one outcome"):
        change(outcomes=())
    with pytest.raises(ValueError, match="base, seed 0 is there twice"):
        change(outcomes=(first, first))
    with pytest.raises(ValueError, match="Sum the counts of its runs"):
        change(outcomes=(dataclasses.replace(first, cost={}),))
    with pytest.raises(ValueError, match="Evaluate all on one split"):
        other = make_study({"mixed": {"text": np.ones((1, 7))}}).outcomes[0]
        change(outcomes=(first, other))
    with pytest.raises(ValueError, match="rename it"):
        make_study({"mixed": {"overall": np.ones((1, 2))}})


def test_columns_and_problems_come_in_order(study):
    assert isinstance(study, StudyResults)
    assert study.columns == ("base", "mixed", "copd")
    assert list(study.problems) == ["text", "image"]

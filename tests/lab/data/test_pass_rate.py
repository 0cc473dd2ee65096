"""Pass rates by `copd data --pass-rate`: measured, filtered, written and resumed."""

import json
import shutil
from pathlib import Path

import pytest

from copd.cli import main
from copd.config import parse_config
from copd.lab.data.pass_rate import pass_rates
from copd.lab.data.rates import Rate, RatesFile, rate_lines
from copd.policy.tiny import resolve
from copd.types import Split
from scripts.make_files_example import write_domain

SIZES: dict[Split, int] = {"train": 7, "validation": 2, "test": 2}
SHORT = ["--rollout.max_completion_tokens", "12", "--model.device", "cpu"]
COLD = [*SHORT[2:], "--rollout.max_completion_tokens", "40", "--rollout.temperature", "1e-5"]
"""All completions of a problem are equal, so that it is solved always or never."""


def run(path: Path, *words: object) -> int:
    text = [str(word) for word in (path, "--pass-rate", *words)]
    return main(["data", *text, *([] if "--model" in text else ["--model", "tiny"])])


def found(path: Path) -> dict[int, float]:
    return {r["index"]: r["pass_rate"] for r in json.loads(path.read_text())["problems"]}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write picture problems of the digits world as files."""
    folder = tmp_path_factory.mktemp("pictures")
    write_domain(folder, "image", SIZES)
    return folder


def test_files_and_the_built_in_world_have_the_same_rates(pictures: Path, tmp_path: Path):
    sizes = {f"num_{split}": size for split, size in SIZES.items()}
    kinds = {
        "files": {"type": "files", "path": str(pictures)},
        "built_in": {"type": "digits", "modality": "image", **sizes},
    }
    rates = []
    for name, domain in kinds.items():
        config = parse_config(
            {
                "model": {"path": "tiny", "device": "cpu"},
                "domains": {"image": domain},
                "recipe": {"type": "experts", "steps": 1},
                "rollout": {"max_completion_tokens": 12},
                "evaluation": {"num_problems": 1},
            }
        )
        path = tmp_path / name
        pass_rates(config, "image", keep=(0.0, 1.0), out=None, rates=path, as_json=False)
        problems = json.loads(path.read_text())["problems"]
        rates.append([(p["index"], p["suite"], p["pass_rate"], p["mean_reward"]) for p in problems])
    assert rates[0] == rates[1] and len(rates[0]) == 7
    assert len({rate for _, _, rate, _ in rates[0]}) > 2


def test_what_is_always_or_never_solved_is_dropped(pictures: Path, tmp_path: Path, capsys):
    source = pictures / "train.jsonl"
    words = ("--media_root", pictures, "--test_share", "0", "--validation_share", "0", *COLD)
    rates = tmp_path / "rates.json"
    none = run(source, "--out", tmp_path / "kept.jsonl", "--rates", rates, *words)
    assert none == 2 and "Widen --keep" in capsys.readouterr().err
    assert not (tmp_path / "kept.jsonl").exists()
    measured = found(rates)
    assert set(measured.values()) == {0.0, 1.0}
    for name, bounds, rate in (("hard", ("-1", "1"), 0.0), ("easy", ("0", "1.5"), 1.0)):
        out = tmp_path / f"{name}.jsonl"
        assert run(source, "--out", out, "--rates", rates, "--keep", *bounds, *words) == 0
        assert [line["pass_rate"] for line in lines(out)] == [rate] * len(lines(out))
        assert len(lines(out)) == list(measured.values()).count(rate)
    hard, easy = (
        {line["images"][0] for line in lines(tmp_path / f"{name}.jsonl")}
        for name in ("hard", "easy")
    )
    assert hard | easy == {line["images"][0] for line in lines(source)} and not hard & easy
    printed = capsys.readouterr().out
    assert f"at 0 %: {len(hard)} (" in printed and f"at 100 %: {len(easy)} (" in printed


def test_the_new_file_trains_with_the_settings_that_are_printed(
    pictures: Path, tmp_path: Path, capsys
):
    folder = tmp_path / "own"
    shutil.copytree(pictures, folder)
    out = tmp_path / "kept.jsonl"
    assert run(folder, "--media_root", folder, "--out", out, "--json", *SHORT) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["paths"] == {
        "path": str(out),
        "validation_path": str(folder),
        "test_path": str(folder),
    }
    words = [str(w) for key, path in report["paths"].items() for w in (f"--{key}", path)]
    check = ["data", str(out), *words[2:], "--media_root", str(folder), "--json", "--show", "0"]
    assert main(check) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {
        "train": report["kept"],
        "validation": 2,
        "test": 2,
    }


def test_a_killed_call_resumes_to_the_same_rates(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("copd.lab.data.pass_rate._CHUNK", 2)
    rates, partial = tmp_path / "rates", tmp_path / "rates.partial"
    assert run(pictures, "--rates", rates, *SHORT) == 0
    whole = rates.read_text()
    assert not partial.exists()
    settings, problems = json.loads(whole)["settings"], json.loads(whole)["problems"]
    for number, cut in ((0, ""), (2, ""), (3, ""), (5, '{"index": 5, "su'), (7, "")):
        rates.unlink()
        known = "".join(json.dumps(line) + "\n" for line in [{"settings": settings}, *problems])
        partial.write_text("".join(known.splitlines(keepends=True)[: number + 1]) + cut)
        assert run(pictures, "--rates", rates, *SHORT) == 0
        assert rates.read_text() == whole and not partial.exists()
    rates.unlink()
    partial.write_text('{"settings": {"mo')
    assert run(pictures, "--rates", rates, *SHORT) == 0
    assert rates.read_text() == whole


def test_a_chunk_that_was_cut_off_leaves_no_trace(tmp_path: Path):
    file = RatesFile(tmp_path / "rates", {"seed": 0})
    rates = [Rate(i, "a", 0.5, 0.5) for i in range(7)]
    assert file.known(total=7, chunk=2) == []
    file.add(rates[:3])
    assert file.known(total=7, chunk=2) == rates[:2]
    file.add(rates[2:4])
    assert file.known(total=7, chunk=2) == rates[:4]
    file.add(rates[4:])
    assert file.known(total=7, chunk=2) == rates


def test_known_rates_are_not_measured_again_and_require_the_same_settings(
    pictures: Path, tmp_path: Path, capsys
):
    model, rates = tmp_path / "model", tmp_path / "rates"
    shutil.copytree(resolve("tiny"), model)
    words = ("--model", model, "--rates", rates)
    assert run(pictures, *words, *SHORT) == 0
    first = capsys.readouterr().out
    shutil.rmtree(model)
    assert run(pictures, *words, *SHORT) == 0
    assert capsys.readouterr().out == first
    assert run(pictures, *words, *SHORT, "--seed", "1") == 2
    assert "another model, other data or other settings" in capsys.readouterr().err
    rates.write_text("[]")
    assert run(pictures, *words, *SHORT) == 2
    assert "holds no pass rates" in capsys.readouterr().err


def test_the_seed_decides(pictures: Path, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(pictures, "--rates", tmp_path / name, *SHORT, "--seed", seed) == 0
    a, b, c = (found(tmp_path / name) for name in "abc")
    assert a == b != c


RUN = """
[model]
path = "tiny"
device = "cpu"
[domains.text]
type = "digits"
modality = "text"
num_train = 5
[domains.mine]
type = "files"
path = "{folder}"
[recipe]
type = "experts"
steps = 1
[rollout]
max_completion_tokens = 4
"""


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["{folder}", "--out", "x"], "--out needs --pass-rate: got it alone. Add --pass-rate"),
        (["--pass-rate"], "Name the file and the model."),
        (["{folder}", "--pass-rate"], "Name the file and the model."),
        (["--pass-rate", "--config", "{config}"], "it has text, mine. Add --domain NAME"),
        (["gone", "--pass-rate", "--config", "{config}", "--domain", "text"], "it has mine"),
        (["{folder}", "--pass-rate", "--model", "tiny", "--keep", "1", "0"], "Swap them"),
        (["{folder}", "--pass-rate", "--model", "gone/"], "model folder not"),
        (["{folder}", "--pass-rate", "--model", "tiny", "--columns.promt", "q"], "columns.prompt?"),
        (["{folder}", "--pass-rate", "--model", "tiny", "--rollout.group_size", "1"], "rollout."),
        (
            ["{folder}", "--pass-rate", "--model", "tiny", "--rates", "{folder}/x/y"],
            "Make the folder",
        ),
        (
            ["--pass-rate", "--config", "{config}", "--domain", "text", "--out", "x.jsonl"],
            "Remove --out; --rates FILE saves the rates",
        ),
    ],
)
def test_a_mistake_ends_in_a_sentence(pictures: Path, tmp_path: Path, capsys, words, remedy: str):
    config = tmp_path / "run.toml"
    config.write_text(RUN.format(folder=pictures))
    assert main(["data", *(w.format(folder=pictures, config=config) for w in words)]) == 2
    assert remedy in capsys.readouterr().err


def test_a_generated_domain_is_measured_without_a_file(tmp_path: Path, capsys):
    config = tmp_path / "run.toml"
    config.write_text(RUN.format(folder="unused"))
    words = ["--config", str(config), "--domain", "text", "--rates", str(tmp_path / "rates")]
    assert main(["data", "--pass-rate", *words]) == 0
    assert (
        "pass rates of tiny on 5 training problems, 8 completions each" in capsys.readouterr().out
    )
    assert len(found(tmp_path / "rates")) == 5


def test_the_histogram_has_a_bar_for_each_rate_or_tenth():
    rates = [Rate(i, "a", r, r) for i, r in enumerate((0.0, 0.0, 0.5, 1.0))]
    assert list(rate_lines(rates, 2)) == [
        f"        0 %       2  {'#' * 40}",
        f"       50 %       1  {'#' * 20}",
        f"      100 %       1  {'#' * 20}",
        "at 0 %: 2 (50%), between: 1 (25%), at 100 %: 1 (25%)",
        "mean pass rate: 37.5 \u00b146.9 %",
    ]
    printed = list(rate_lines([*rates, Rate(4, "b", 19 / 20, 0.95)], 20))
    assert printed[0].split() == ["0", "%", "2", "#" * 40]
    assert printed[6].split() == ["50-60", "%", "1", "#" * 20]
    assert printed[10].split() == ["90-100", "%", "1", "#" * 20]
    assert printed[-1] == "  b: at 0 %: 0 (0%), between: 1 (100%), at 100 %: 0 (0%)"

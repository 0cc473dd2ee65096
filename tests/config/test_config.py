"""The configuration: loading, defaults, JSON, overrides and help."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from copd.config import Config, DigitsConfig, describe_settings, load_config, parse_merge
from copd.config.study import load_study
from copd.recipes import build_plan
from tests.config.conftest import MINIMAL, recipe, refusal, write

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
CONFIGS = [path for path in CONFIGS if path.stem != "cluster"]  # files and machines of the user
PILOT = Path(__file__).parents[2] / "paper" / "studies" / "pilot.toml"


# The committed configurations


def test_there_is_a_configuration_for_every_recipe():
    pilot = load_study(PILOT).config("pilot", {}).recipe.type
    kinds = {load_config(path).recipe.type for path in CONFIGS} | {pilot}
    assert kinds == {"experts", "mixed", "opd", "mopd", "copd", "pilot"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_committed_configurations_load_plan_and_survive_json(path: Path):
    config = load_config(path)
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert config.output_dir == Path("runs") / path.stem
    assert build_plan(config).total_steps > 0


def test_committed_configurations_have_equal_branch_steps():
    totals = {}
    for path in CONFIGS:
        stages = build_plan(load_config(path)).stages
        totals[path.stem] = sum(stage.steps * len(stage.trained) for stage in stages)
    assert len(set(totals.values())) == 1, totals


# Defaults and JSON


def test_defaults_are_the_papers(minimal: Path):
    config = load_config(minimal)
    rollout = config.rollout
    assert (rollout.num_prompts, rollout.group_size, rollout.temperature) == (256, 8, 1.0)
    assert rollout.max_completion_tokens == 16_384
    assert (config.loss.clip_low, config.loss.clip_high) == (0.2, 0.28)
    assert config.optimizer.learning_rate == 1e-6
    assert config.distill.type == "sampled"
    assert config.monitor.overlap_k == 10
    assert config.recipe.type == "copd"
    assert 2 * config.recipe.rlvr_steps == 3 * config.recipe.opd_steps
    assert config.recipe.merge.type == "uniform"


@pytest.mark.parametrize(
    "overrides",
    [
        recipe("copd", rounds=1, beta=2),
        ("--recipe.beta", "{text = 1, image = 0}"),
        ("--recipe.merge", "{type = 'weighted', weights = {text = 1, image = 3}}"),
        ("--recipe.merge", "{type = 'ties', density = 0.5}"),
        ("--recipe.merge", "{type = 'validation'}"),
        ("--distill", "{type = 'topk', form = 'jsd'}"),
        ("--distill", "{type = 'sampled', log_ratio_clamp = 5}"),
        ("--domains.text.suites", '["chain"]', "--optimizer.betas", "[0.9, 0.95]"),
        recipe("opd", student="base", teacher="text", expert_steps=1, opd_steps=1),
        recipe("mixed", steps=1, domains=["image"]),
    ],
    ids=" ".join,
)
def test_json_gives_the_same_configuration_back(minimal: Path, overrides: tuple[str, ...]):
    config = load_config(minimal, overrides)
    again = write(minimal.parent, config.model_dump_json(indent=2), "config.json")
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert load_config(again) == config


def test_a_configuration_is_immutable(minimal: Path):
    config = load_config(minimal)
    with pytest.raises(ValidationError):
        config.rollout.group_size = 4


def test_branches_default_to_one_per_domain(minimal: Path):
    assert load_config(minimal).branches == {"text": "text", "image": "image"}
    named = load_config(minimal, ["--recipe.branches", "{a = 'text', b = 'text'}"])
    assert named.branches == {"a": "text", "b": "text"}


# Overrides


def test_overrides_are_toml_values_or_text(minimal: Path):
    config = load_config(
        minimal,
        [
            *("--recipe.rounds", "3", "--optimizer.learning_rate=2e-4"),
            *("--domains.text.suites", '["chain", "words"]', "--model.frozen_vision", "true"),
            *("--model.path", "org/name", "--seed=1", "--recipe.rounds=4"),
        ],
    )
    assert build_plan(config).total_steps == 4 * 25
    assert config.optimizer.learning_rate == 2e-4
    text = config.domains["text"]
    assert isinstance(text, DigitsConfig)
    assert text.suites == ("chain", "words")
    assert config.model.frozen_vision is True
    assert (config.model.path, config.seed) == ("org/name", 1)


def test_an_override_reaches_a_section_that_the_file_leaves_out(minimal: Path):
    assert load_config(minimal, ["--rollout.group_size", "4"]).rollout.group_size == 4


@pytest.mark.parametrize("text", ["2024", "1e3", "true", "2024-01-01", "nan", "x = 1\ny", "[a"])
def test_text_stays_text_where_text_is_expected(minimal: Path, text: str):
    config = load_config(minimal, ["--output_dir", text, "--model.path", text])
    assert (config.output_dir, config.model.path) == (Path(text), text)


def test_an_override_replaces_a_whole_table(minimal: Path):
    config = load_config(minimal, recipe("mixed", steps=3))
    assert config.recipe.type == "mixed"


def test_the_file_is_not_read_again_with_old_overrides(minimal: Path):
    load_config(minimal, ["--seed", "5"])
    assert load_config(minimal).seed == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--seed"], "--seed needs a value: got none. Pass --seed VALUE."),
        (["--seed", "--recipe.rounds", "1"], "--seed needs a value"),
        (["seed", "3"], "must look like --section.key VALUE: got 'seed'"),
        (["--recipe..rounds", "3"], "must look like --section.key VALUE"),
        (["--seed.x", "3"], "--seed.x needs seed to be a table"),
        (["--domains.txet.suites", "[]"], "got 'txet', .* Did you mean 'text'?"),
    ],
)
def test_malformed_overrides_say_what_to_write(tmp_path: Path, overrides: list[str], sentence: str):
    path = write(tmp_path, f"seed = 0\n{MINIMAL}")
    [found] = refusal(path, *overrides)
    assert re.search(sentence.replace("?", r"\?"), found)


# Merging outside a run, and help


def test_a_merge_is_made_from_plain_values():
    merge = parse_merge({"type": "dare", "density": 0.25, "seed": 3})
    assert merge.model_dump() == {"type": "dare", "density": 0.25, "scale": 1.0, "seed": 3}
    with pytest.raises(ValueError, match=r"density must be at most 1: got 2\. Pass another value"):
        parse_merge({"type": "ties", "density": 2})


def test_help_has_every_setting_with_its_meaning():
    lines = describe_settings().splitlines()
    assert max(map(len, lines)) <= 100
    assert "[recipe]" in " ".join(lines)
    start = lines.index('[recipe]  type = "copd"')
    assert lines[start + 1] == (
        "  # Co-evolving policy distillation: branches alternate RLVR and mutual OPD, then merge."
    )
    assert any(
        re.fullmatch(r"  rounds +integer \(required\) +N, rounds of one RLVR .*", line)
        for line in lines[start:]
    )
    assert any(re.match(r"  group_size +integer = 8 +G, completions per prompt", x) for x in lines)

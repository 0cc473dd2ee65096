"""Mistakes in a configuration: one sentence each, with a remedy."""

import json
from pathlib import Path

import pytest

from copd.config import load_config, load_run
from tests.config.conftest import MINIMAL, recipe, refusal, write


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("recipe.rundos", "Did you mean recipe.rounds?"),
        ("recip.rounds", "Did you mean recipe?"),
        ("sede", "Did you mean seed?"),
        ("group_size", "Did you mean rollout.group_size?"),
        ("recipe.group_size", "Did you mean rollout.group_size?"),
        ("domains.text.modalty", "Did you mean domains.text.modality?"),
        ("recipe.merge.weigths", "Did you mean recipe.merge.weights?"),
        ("zzz", "Remove it."),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_valid_one(minimal: Path, key: str, remedy: str):
    extra = ["--recipe.merge.type", "uniform"] if "merge" in key else []
    [sentence] = refusal(minimal, f"--{key}", "1", *extra)
    assert sentence.startswith(f"{key.removesuffix('.rounds')} is not a setting: got ")
    assert sentence.endswith(remedy)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("", "domains.mine.path is missing: it must be chosen (One or several files, a folder"),
        ("path = 3", "domains.mine.path must be text or must be a list"),
        ("path = []", "domains.mine.path must be text or must have at least 1 item"),
        ("path = 'a', modality = 'text'", 'set domains.mine.type = "digits".'),
        ("path = 'a', columns = {promt = 'b'}", "Did you mean domains.mine.columns.prompt?"),
        ("path = 'a', columns = {prompt = 3}", "domains.mine.columns.prompt must be text: got 3."),
        ("path = 'a', verifier = {type = 'exakt'}", "expected one of 'exact', 'numeric'"),
        ("path = 'a', verifier = {tolerance = 1}", "domains.mine.verifier.type is missing"),
        (
            "path = 'a', verifier = {type = 'exact', tolerance = 1}",
            'set domains.mine.verifier.type = "numeric".',
        ),
        ("path = 'a', max_pixels = 100_000_000", "max_pixels must be at most 89000000"),
        ("path = 'a', test_share = 0.96", "must leave problems to learn from: got 0.05 and 0.96"),
    ],
)
def test_a_domain_of_files_says_what_is_wrong(minimal: Path, settings: str, sentence: str):
    table = f"{{type = 'files', {settings}}}".replace(", }", "}")
    [found] = refusal(minimal, "--domains.mine", table)
    assert sentence in found


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (
            ("--domains.text.type", "digit"),
            "got 'digit', expected one of 'digits', 'files', 'reasoning_gym'.",
        ),
        (("--distill.top_k", "5"), "distill.type is missing: expected one of 'sampled', 'topk'"),
        (("--distill.type", "full", "--distill.top_k", "5"), 'set distill.type = "topk"'),
        (("--distill.type", "sampled", "--distill.form", "jsd"), "only with 'topk' or 'full'"),
        (("--distill.type", "topk", "--distill.log_ratio_clamp", "5"), 'distill.type = "sampled"'),
        (("--recipe.steps", "5"), "expected only with 'experts' or 'mixed'"),
        (("--recipe.merge.type", "none", "--recipe.merge.scale", "5"), '"task_arithmetic"'),
        (("--recipe.type", "cpod"), "Did you mean 'copd'?"),
        (("--recipe.merge.type", "average"), "Choose one of these."),
    ],
)
def test_a_setting_of_another_variant_names_that_variant(
    minimal: Path, overrides: tuple[str, ...], remedy: str
):
    [sentence] = refusal(minimal, *overrides)
    assert remedy in sentence


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("--rollout.group_size", "1"), "rollout.group_size must be at least 2: got 1."),
        (("--recipe.rounds", "0"), "recipe.rounds must be at least 1: got 0."),
        (("--recipe.rounds", "2.5"), "recipe.rounds must be an integer: got 2.5."),
        (("--recipe.rounds", "true"), "recipe.rounds must be an integer: got True."),
        (("--recipe.rounds", "'3'"), "recipe.rounds must be an integer: got '3'."),
        (("--seed", "1\nx = 2"), r"seed must be an integer: got '1\nx = 2'."),
        (("--optimizer.learning_rate", "nan"), "must be a finite number: got nan."),
        (("--optimizer.betas", "[0.9]"), "optimizer.betas must have one more entry: got [0.9]."),
        (("--optimizer.betas", "[0.9, 2]"), "Every entry of optimizer.betas must be less than 1"),
        (("--model.trust_remote_code", "1"), "must be a boolean: got 1."),
        (("--model.dtype", "float16"), "must be 'float32' or 'bfloat16': got 'float16'."),
        (("--model.path", "''"), "model.path must have at least 1 character: got ''."),
        (
            ("--domains.text.suites", "chain"),
            'domains.text.suites must be a list, such as ["a", "b"]: got \'chain\'.',
        ),
        (
            ("--recipe.beta", "high"),
            "must be a number or must be a table, such as {key = VALUE}: got",
        ),
        (("--recipe.beta", "{text = 'x', image = 1}"), "recipe.beta.text must be a number"),
        (("--recipe", "3"), "recipe must be a table, such as {key = VALUE}: got 3."),
        (("--rollout", "3"), "rollout must be a table, such as {key = VALUE}: got 3."),
        (("--domains", "{}"), "domains must have at least 1 item: got {}."),
        (("--domains.text", "3"), "domains.text must be a table, such as {key = VALUE}: got 3."),
        (("--loss.clip_low", "1.0"), "loss.clip_low must be less than 1: got 1.0."),
        (("--loss.dual_clip", "1.0"), "loss.dual_clip must be above 1: got 1.0."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_value_says_what_was_expected_and_got(
    minimal: Path, overrides: tuple[str, ...], sentence: str
):
    [found] = refusal(minimal, *overrides)
    assert sentence in found
    assert f"Change it in the config file, or pass {overrides[0]}" in found


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (recipe("copd", rounds=1, topology="hub"), "Set recipe.hub to the branch in the middle."),
        (recipe("copd", rounds=1, topology="hub", hub="txt"), "Did you mean 'text'?"),
        (recipe("copd", rounds=1, hub="text"), 'Set recipe.topology = "hub", or remove'),
        (
            recipe("copd", rounds=1, topology="trunk", branches={"trunk": "text", "b": "image"}),
            "Rename it, or the domain it is named after.",
        ),
        (recipe("copd", rounds=1, band={"low": 0.9, "high": 0.8}), "such as 0.88 and 0.92"),
        (recipe("copd", rounds=1, band={"low": 0.8, "high": 0.9}), "got monitor.every = 0."),
        (recipe("copd", rounds=1, branches={"a": "text"}), 'recipe.type = "experts"'),
        (recipe("copd", rounds=1, branches={"a": "txt"}), "recipe.branches.a must name a domain"),
        (recipe("copd", rounds=1, beta={"text": 1}), "got 'text', expected 'text', 'image'"),
        (recipe("copd", rounds=1, beta=0), 'use recipe.type = "experts"'),
        (
            recipe("copd", rounds=1, topology="pair", branches=dict.fromkeys("abc", "text")),
            'Use "all", or "hub" with recipe.hub.',
        ),
        (recipe("experts", steps=1, branches={"a": "video"}), "known are 'text', 'image'"),
        (recipe("mixed", steps=1, domains=["video"]), "got 'video', known are 'text', 'image'"),
        (recipe("mixed", steps=1, domains=["text", "text"]), "Remove the repetition"),
        (
            recipe("opd", student="text", teacher="text", expert_steps=1, opd_steps=1),
            "got 'text' twice. Name another branch in recipe.teacher.",
        ),
        (
            recipe("opd", student="text", teacher="imag", expert_steps=1, opd_steps=1),
            "Did you mean 'image'?",
        ),
        (
            recipe("opd", student="video", teacher="text", expert_steps=1, opd_steps=1),
            "known are 'text', 'image', 'base'",
        ),
        (
            recipe("opd", student="base", teacher="base", expert_steps=1, opd_steps=1),
            "Name another branch in recipe.teacher.",
        ),
        (
            recipe("opd", student="text", teacher="base", expert_steps=1, opd_steps=1),
            "got 'base', known are 'text', 'image'",
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_recipe_that_cannot_be_planned_is_refused(
    minimal: Path, overrides: tuple[str, ...], remedy: str
):
    [sentence] = refusal(minimal, *overrides)
    assert remedy in sentence


@pytest.mark.parametrize(
    ("merge", "remedy"),
    [
        ("{type = 'select', branch = 'txt'}", "Did you mean 'text'?"),
        ("{type = 'weighted', weights = {text = 1}}", "expected 'text', 'image'"),
        ("{type = 'weighted', weights = {text = 1, image = 1, x = 1}}", "Name every branch once."),
        ("{type = 'weighted', weights = {text = 0, image = 0}}", "a weight above 0"),
        ("{type = 'weighted'}", "recipe.merge.weights is missing"),
        ("{type = 'dare', density = 0}", "recipe.merge.density must be above 0: got 0."),
    ],
)
def test_a_merge_that_does_not_fit_the_branches_is_refused(minimal: Path, merge: str, remedy: str):
    [sentence] = refusal(minimal, "--recipe.merge", merge)
    assert remedy in sentence


def test_a_single_expert_cannot_be_merged(minimal: Path):
    one = recipe("experts", steps=1, branches={"a": "text"}, merge={"type": "uniform"})
    [sentence] = refusal(minimal, *one)
    assert 'set recipe.merge.type = "none"' in sentence
    assert load_config(minimal, [*one, "--recipe.merge.type", "none"])


def test_mopd_needs_two_teachers(tmp_path: Path):
    path = write(tmp_path, MINIMAL.replace("domains.image", "domains.text2"))
    assert load_config(path, recipe("mopd", expert_steps=1, opd_steps=1))
    alone = ("--domains", "{text = {type = 'digits', modality = 'text'}}")
    [sentence] = refusal(path, *recipe("mopd", expert_steps=1, opd_steps=1), *alone)
    assert 'recipe.type = "opd" with student = "base"' in sentence


@pytest.mark.parametrize("name", ["base", "student", "unified", "theta_0"])
def test_names_that_copd_uses_itself_are_refused(minimal: Path, name: str):
    [domain] = refusal(minimal, f"--domains.{name}", "{type = 'digits', modality = 'text'}")
    [branch] = refusal(minimal, "--recipe.branches", f"{{{name} = 'text', b = 'image'}}")
    assert domain == branch
    assert branch.endswith("Choose another name.")


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "", "-a"])
def test_names_that_cannot_be_folders_are_refused(minimal: Path, name: str):
    table = json.dumps(name) + " = 'text', b = 'image'"
    [sentence] = refusal(minimal, "--recipe.branches", "{" + table + "}")
    assert "choose a plain word" in sentence


def test_sections_are_checked_against_each_other(minimal: Path):
    [scores] = refusal(minimal, "--monitor.score_top_k", "9")
    assert scores.endswith("Raise score_top_k.")
    [probes] = refusal(minimal, "--monitor.probe_top_k", "5")
    assert probes.endswith("Raise probe_top_k.")
    [problems] = refusal(minimal, "--domains.image.num_test", "255")
    assert "domains.image.num_test is 255. Lower the first" in problems
    assert load_config(minimal, ["--domains.image.num_test", "256"])
    smaller = ("--domains.image.num_validation", "255")
    assert load_config(minimal, smaller)
    [problems] = refusal(minimal, *smaller, "--evaluation.split", "validation")
    assert "domains.image.num_validation is 255. Lower the first" in problems


def test_what_must_be_chosen_is_asked_for(tmp_path: Path):
    assert refusal(write(tmp_path, "")) == [
        "model is missing: expected a table. Add [model] to the config file.",
        "domains is missing: expected a table. Add [domains] to the config file.",
        "recipe is missing: expected a table. Add [recipe] to the config file.",
    ]
    [path] = refusal(write(tmp_path, MINIMAL.replace('path = "tiny"', "")))
    assert path.startswith("model.path is missing: it must be chosen (")
    [rounds] = refusal(write(tmp_path, MINIMAL.replace("rounds = 2", "")))
    assert rounds.endswith("Add it to the config file, or pass --recipe.rounds VALUE.")
    [kind] = refusal(write(tmp_path, MINIMAL.replace('type = "copd"', "")))
    assert kind.startswith("recipe.type is missing: expected one of 'experts', 'mixed', 'opd'")


def test_every_mistake_has_its_sentence(minimal: Path):
    found = refusal(minimal, "--seed", "-1", "--recipe.rounds", "0", "--model.dvice", "cpu")
    assert [sentence.split(" ")[0] for sentence in found] == [
        "seed",
        "model.dvice",
        "recipe.rounds",
    ]


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="Check the path"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(FileNotFoundError, match="Check the path"):
        load_config(tmp_path)
    [toml] = refusal(write(tmp_path, "seed = 1\nseed = = 2"))
    assert "must be valid TOML" in toml
    assert "line 2" in toml
    [data] = refusal(write(tmp_path, "[1", "config.json"))
    assert "must be valid JSON" in data
    [table] = refusal(write(tmp_path, "[1]", "config.json"))
    assert "must hold a table" in table
    (tmp_path / "latin.toml").write_bytes(b'output_dir = "\xe9"')
    [encoding] = refusal(tmp_path / "latin.toml")
    assert "utf-8" in encoding


def test_a_run_is_resumed_with_its_own_settings_but_elsewhere(minimal: Path):
    words = ["--engine.type", "ray", "--engine.num_cpus", "2", "--optimizer.learning_rate", "1e-3"]
    stored = minimal.with_suffix(".json")
    stored.write_text(load_config(minimal, words).model_dump_json())
    assert load_run(stored).engine.model_dump()["num_cpus"] == 2
    other = load_run(stored, ["--engine.num_cpus", "3"])
    assert other.engine.model_dump()["num_cpus"] == 3 and other.optimizer.learning_rate == 1e-3
    moved = load_run(stored, ["--engine.type", "local", "--engine.num_threads=1"])
    assert moved.engine.model_dump() == {"type": "local", "num_threads": 1}
    assert moved.optimizer.learning_rate == 1e-3
    with pytest.raises(ValueError, match=r"got --recipe.rounds.*train in another output_dir"):
        load_run(stored, ["--engine.type", "local", "--recipe.rounds", "3"])


VLLM = ("--rollout.sampler", "vllm")


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        (("--rollout.vllm.tolerance", "0.2"), r'Set rollout\.sampler = "vllm"'),
        ((*VLLM, "--model.device", "cpu"), "got model.device = .cpu.* Leave one of the two out"),
        ((*VLLM, "--model.trust_remote_code", "true"), "trust_remote_code.* Leave one of the two"),
        (
            (*VLLM, "--engine.type", "ray", "--engine.ranks_per_branch", "2"),
            r"got engine\.ranks_per_branch above 1.* Leave one of the two out",
        ),
        (
            (*VLLM, "--evaluation.temperature", "3.0"),
            r"got evaluation\.temperature = 3\. Change it",
        ),
        ((*VLLM, "--rollout.temperature", "0.001"), r"from 0\.01 to 2: got rollout\.temperature"),
    ],
)
def test_what_vllm_cannot_do_is_refused(minimal: Path, overrides: tuple[str, ...], remedy: str):
    with pytest.raises(ValueError, match=remedy):
        load_config(minimal, overrides)


def test_vllm_may_evaluate_greedily(minimal: Path):
    load_config(minimal, (*VLLM, "--evaluation.temperature", "0.0"))

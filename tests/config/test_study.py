"""Study files: what they mean, how they are overridden, and what is refused in which words."""

from pathlib import Path

import pytest

from copd.config.study import Study, load_study, overlay

FILE = """
[common]
model = { path = "tiny", device = "cpu" }
domains.text = { type = "digits", modality = "text" }
domains.image = { type = "digits", modality = "image" }
optimizer.learning_rate = 1e-3

[methods.experts]
recipe = { type = "experts", steps = 2 }

[methods.copd]
label = "CoPD"
recipe = { type = "copd", rounds = 1, rlvr_steps = 1, opd_steps = 1 }
optimizer.learning_rate = 1e-4
merges.ties = { type = "ties", density = 0.5 }
"""


def load(tmp_path: Path, *words: str, text: str = FILE) -> Study:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return load_study(path, words)


def test_a_method_overrides_what_is_common(tmp_path: Path):
    study = load(tmp_path)
    assert study.config("experts", {}).optimizer.learning_rate == 1e-3
    config = study.config("copd", {"seed": 7})
    assert (config.optimizer.learning_rate, config.seed) == (1e-4, 7)
    assert config.recipe.type == "copd"
    assert study.methods["copd"].label == "CoPD"
    assert set(study.methods["copd"].merges) == {"ties"}
    assert study.seeds == (0, 1, 2, 3, 4)


def test_overrides_from_the_command_line(tmp_path: Path):
    words = ["--seeds", "[3]", "--common.optimizer.learning_rate=2e-3"]
    study = load(tmp_path, *words, "--methods.copd.recipe.rounds", "4", "--output_dir", "here")
    assert (study.seeds, study.output_dir) == ((3,), Path("here"))
    assert study.config("experts", {}).optimizer.learning_rate == 2e-3
    recipe = study.config("copd", {}).recipe
    assert recipe.model_dump(include={"rounds", "rlvr_steps"}) == {"rounds": 4, "rlvr_steps": 1}


def test_a_base_file_lends_everything_but_its_recipe(tmp_path: Path):
    base = 'output_dir = "x"\nseed = 9\n[recipe]\ntype = "mixed"\nsteps = 3\n'
    (tmp_path / "run.toml").write_text(base + "[rollout]\nnum_prompts = 5\ngroup_size = 3\n")
    text = 'base = "run.toml"\n' + FILE + "\n[common.rollout]\ngroup_size = 2\n"
    study = load(tmp_path, text=text)
    assert study.common["rollout"] == {"num_prompts": 5, "group_size": 2}
    assert {"recipe", "seed", "output_dir"} & set(study.common) == set()


def test_the_json_of_a_study_is_the_study(tmp_path: Path):
    study = load(tmp_path)
    assert Study.model_validate_json(study.model_dump_json()) == study


def test_another_type_starts_a_table_afresh():
    below = {"distill": {"type": "topk", "top_k": 3}, "rollout": {"group_size": 2}}
    above = {"distill": {"type": "full"}, "rollout": {"num_prompts": 4}}
    assert overlay(below, above) == {
        "distill": {"type": "full"},
        "rollout": {"group_size": 2, "num_prompts": 4},
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seeds", "[1, 1]"], "seeds must name each seed once: got [1, 1]."),
        (["--jobs", "0"], "jobs must be at least 1: got 0. Change it in the study file"),
        (["--equal", "tokens"], 'equal = "tokens" and must be given with it'),
        (["--tokens", "5"], 'got equal = "branch_steps" and tokens = 5. Set both, or neither.'),
        (["--sedes", "[1]"], "Did you mean seeds?"),
        (["--methods.cpd.label", "x"], "Did you mean 'copd'?"),
        (["--methods.copd.budget", "none"], "methods.copd.budget must be 'equal' or 'own'"),
        (
            ["--methods.copd.merges.text", "{type = 'select', branch = 'text'}"],
            "Set evaluation.branches = true to have every branch as a column.",
        ),
    ],
)
def test_a_mistake_in_the_study_is_a_sentence(tmp_path: Path, words: list[str], sentence: str):
    with pytest.raises(ValueError) as caught:
        load(tmp_path, *words)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods.copd.recipe.rundos", "3"], "method 'copd': recipe.rundos is not a setting"),
        (
            ["--common.rollout.group_size", "1"],
            "got 1. Change it in the study file, or pass --methods.copd.rollout.group_size VALUE.",
        ),
        (["--common.seed", "1"], "method 'copd' cannot set seed: got 1, but the study chooses it"),
    ],
)
def test_a_mistake_in_a_method_is_a_sentence_about_it(tmp_path: Path, words, sentence):
    with pytest.raises(ValueError) as caught:
        load(tmp_path, *words).config("copd", {})
    assert sentence in str(caught.value)

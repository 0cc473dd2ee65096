"""The command line for real: it trains, resumes, evaluates, merges, and says when it cannot."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from copd.cli import main
from copd.storage import read_lines

CONFIG = """
output_dir = "{root}"
[model]
path = "tiny"
device = "cpu"
[domains.text]
type = "digits"
modality = "text"
[domains.image]
type = "digits"
modality = "image"
[recipe]
type = "copd"
topology = "pair"
rounds = 2
rlvr_steps = 1
opd_steps = 1
[rollout]
num_prompts = 2
group_size = 2
max_completion_tokens = 8
[optimizer]
learning_rate = 1e-3
[evaluation]
num_problems = 4
num_samples = 2
[checkpoint]
every = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG.format(root=tmp_path / "run"))
    return path


def copd(*words: object) -> int:
    return main([str(word) for word in words])


def test_train_evaluate_merge_and_resume(config, tmp_path, capsys):
    assert copd("train", config) == 0
    shown = capsys.readouterr().out
    assert "step    4/4 mutual" in shown
    assert "unified: uniform merge of 0.50 text, 0.50 image" in shown
    for column in ("base", "text", "image", "unified", "text/chain", "image/count"):
        assert column in shown
    assert "unified - base in points" in shown

    final = tmp_path / "run" / "final"
    assert copd("eval", final, "--config", config, "--num-problems", 3, "--num-samples", 1) == 0
    assert "test accuracy" in capsys.readouterr().out

    merged = tmp_path / "merged"
    assert copd("merge", final, "tiny", "--out", merged, "--method", "uniform") == 0
    assert copd("eval", merged, "--config", config, "--num-problems", 2, "--num-samples", 1) == 0
    capsys.readouterr()
    assert copd("resume", tmp_path / "run") == 0
    assert "held-out accuracy" in capsys.readouterr().out


SHORT = {
    "experts": ["--recipe.steps", "1"],
    "mixed": ["--recipe.steps", "1"],
    "opd": ["--recipe.expert_steps", "1", "--recipe.opd_steps", "1"],
    "mopd": ["--recipe.expert_steps", "1", "--recipe.opd_steps", "1"],
    "copd": ["--recipe.rounds", "1", "--recipe.rlvr_steps", "1", "--recipe.opd_steps", "1"],
}
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
CONFIGS = [path for path in CONFIGS if path.stem != "cluster"]  # files and machines of the user


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_committed_configuration_runs(path, tmp_path):
    recipe = tomllib.loads(path.read_text())["recipe"]["type"]
    few = ["--rollout.num_prompts", "2", "--rollout.group_size", "2"]
    few += ["--evaluation.num_problems", "3", "--evaluation.num_samples", "1"]
    root = tmp_path / "run"
    assert copd("train", path, "--output_dir", root, *SHORT[recipe], *few) == 0
    plan = json.loads((root / "plan.json").read_text())
    lines = list(read_lines(root / "metrics.jsonl"))
    assert len(lines) == sum(stage["steps"] for stage in plan["stages"])
    for line in lines:
        for action in plan["stages"][line["stage_index"]]["actions"]:
            assert f"{action['key']}/loss" in line["branches"][action["branch"]]
    results = json.loads((root / "eval.json").read_text())
    assert all(set(own) == {"text", "image", "video"} for own in results.values())
    assert list((root / "final").rglob("model.safetensors"))


def test_sampled_tokens_never_contain_a_placeholder(config, tmp_path):
    assert copd("train", config, "--rollout.temperature", "3.0") == 0
    tokenizer = json.loads((tmp_path / "run" / "final" / "tokenizer.json").read_text())
    control = {t["id"] for t in tokenizer["added_tokens"] if t["special"]}
    end = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<|im_end|>")
    sampled = {
        token
        for record in read_lines(tmp_path / "run" / "rollouts.jsonl")
        for rollout in record["rollouts"]
        for token in rollout["token_ids"]
    }
    assert len(sampled) > 10
    assert sampled & control <= {end}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--recipe.round", "3"], "recipe.rounds"),
        (["--model.path", "./nowhere"], "model folder not found"),
        (["--recipe.branches", '{a = "text", b = "audio"}'], "audio"),
        (["--recipe.topology", "hub", "--recipe.hub", "video"], "video"),
        (["--recipe", '{type="opd",student="text",teacher="text",expert_steps=1,opd_steps=1}'],
         "Name another branch in recipe.teacher"),
        (["--rollout.group_size", "1"], "group_size"),
        (["--domains.text.num_test", "0"], "num_test"),
        (["--domains.text.suites", '["sums"]'], "Correct domains.text.suites"),
        (["--recipe.merge", '{type = "select", branch = "video"}'], "video"),
        (["--model.device", "cuda"], 'Use "cpu" or "auto"'),
    ],
)  # fmt: skip
def test_a_mistake_of_the_user_is_a_sentence_and_leaves_nothing(
    config, tmp_path, capsys, overrides, message
):
    import torch

    if "cuda" in overrides and torch.cuda.is_available():
        pytest.skip("here a CUDA device is no mistake")
    assert copd("train", config, *overrides) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("copd: error: ")
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_model_that_only_reads_is_not_shown_pictures(config, tmp_path, capsys, reading_folders):
    assert copd("train", config, "--model.path", reading_folders["llama"]) == 2
    assert "domain 'image' needs a model that reads image" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_model_that_only_reads_learns_from_text(config, tmp_path, reading_folders):
    recipe = '{type = "experts", steps = 1, branches = {reader = "text"}}'
    words = ["--model.path", reading_folders["qwen3"], "--recipe", recipe]
    text_only = config.read_text().replace(
        '[domains.image]\ntype = "digits"\nmodality = "image"', ""
    )
    config.write_text(text_only)
    assert copd("train", config, *words) == 0
    assert (tmp_path / "run" / "final" / "reader" / "model.safetensors").exists()


def test_a_run_that_diverges_stops_in_one_sentence(config, capsys):
    words = ("--optimizer.learning_rate", "1e18")
    assert copd("train", config, *words) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    pattern = r"branch '\w+'.* on domain '\w+'.* at stage \w+ \(number \d\), step \d"
    assert re.search(pattern, said), said


def test_a_full_disk_loses_nothing(config, tmp_path, capsys, small_disk):
    """A real file system that has room for one checkpoint and not for the next."""
    root = small_disk("24m") / "run"
    assert copd("train", config, "--output_dir", root) == 1
    said = capsys.readouterr().err
    assert "The disk is full" in said
    assert f"copd resume {root}" in said
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["step_00000001"]
    small_disk("200m")
    assert copd("resume", root) == 0
    assert "continuing after step 1 of 4" in capsys.readouterr().out
    undisturbed = tmp_path / "undisturbed"
    assert copd("train", config, "--output_dir", undisturbed) == 0
    ends = [run / "final" / "model.safetensors" for run in (root, undisturbed)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


STRANGER = """
import sys, json, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, AutoImageProcessor
folder = sys.argv[1]
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
pictures = AutoImageProcessor.from_pretrained(folder, backend="pil")
answers = []
for text, picture in (("Compute 3-4+8-2.", None), ("Largest?", sys.argv[2])):
    content = [{"type": "image"}] * (picture is not None) + [{"type": "text", "text": text}]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    extra = {}
    if picture:
        extra = dict(pictures(images=[Image.open(picture)], return_tensors="pt"))
        count = int(extra["image_grid_thw"].prod()) // pictures.merge_size**2
        prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * count)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    extra["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    out = model.generate(ids, **extra, max_new_tokens=30, do_sample=False)
    answers.append(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True))
assert "copd" not in sys.modules
print(json.dumps(answers))
"""


def test_a_stranger_loads_the_merged_model(config, tmp_path):
    """Only transformers, no copd: the merged model answers as our own greedy sampler does."""
    import torch
    from PIL import Image as Picture

    from copd.domains.digits import DigitsDomain
    from copd.policy import Policy
    from copd.types import Image, Message, Text

    assert copd("train", config) == 0
    final = tmp_path / "run" / "final"
    world = DigitsDomain("image", "image", ("extreme",), {"train": 1, "validation": 1, "test": 9})
    shown = world.problem("test", 0).messages[0].content[0]
    assert isinstance(shown, Image)
    Picture.fromarray(shown.pixels).save(tmp_path / "picture.png")
    words = [sys.executable, "-I", "-c", STRANGER, str(final), str(tmp_path / "picture.png")]
    said = subprocess.run(words, capture_output=True, text=True, check=True)
    policy = Policy.load(final)
    questions = [(Text("Compute 3-4+8-2."),), (shown, Text("Largest?"))]
    ours = policy.sample(
        [policy.render([Message("user", parts)]) for parts in questions],
        group_size=1,
        max_tokens=30,
        temperature=0.0,
        generator=torch.Generator(),
    )
    assert json.loads(said.stdout) == [group[0].text for group in ours]
    assert all("#" in group[0].text for group in ours)

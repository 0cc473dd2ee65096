"""Loading, banned tokens, errors, and saved folders that transformers reads by itself."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from copd.policy import Policy, Prompt
from copd.types import Image, Message, Text
from tests.packing import flat

WITHOUT_COPD = """
import json, sys
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

folder, text = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
pixels = np.load(folder + "/picture.npy")

def answer(parts, **media):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    if media:
        count = int(media["image_grid_thw"].prod()) // processor.merge_size**2
        prompt = prompt.replace("<|image_pad|>", "<|image_pad|>" * count)
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    if media:
        media["mm_token_type_ids"] = (ids == model.config.image_token_id).long()
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30,
        pad_token_id=0, **media
    )
    return output[0, ids.shape[1]:].tolist()

words = {"type": "text", "text": text}
seen = processor(pixels, return_tensors="pt")
answers = [answer([words]), answer([{"type": "image"}, words], **seen)]
assert not any(name.split(".")[0] == "copd" for name in sys.modules), "copd was imported"
print(json.dumps(answers))
"""


def greedy(policy: Policy, *parts: Text | Image) -> list[int]:
    prompt = policy.render([Message("user", parts)])
    ((completion,),) = policy.sample(
        [prompt], group_size=1, max_tokens=30, temperature=0.0, generator=torch.Generator()
    )
    return completion.token_ids.tolist()


def let_a_banned_token_win(policy: Policy, prompt: Prompt) -> None:
    """Make the logit of a banned token, which is never trained, the largest."""
    start = policy.tokenizer.convert_tokens_to_ids("<|im_start|>")
    with torch.no_grad():
        (state,) = policy.score([prompt], *flat([[np.array([0], dtype=np.int32)]])).hidden
        policy.head[start] = 50 * state / state.norm()
        assert int((state @ policy.head.T).argmax()) == start


@pytest.mark.slow
def test_transformers_alone_gives_the_same_answers(seeing_folder, tmp_path: Path):
    policy = Policy.load(seeing_folder)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.03 * torch.randn(parameter.shape, generator=noise)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    text = "How many are left?"
    let_a_banned_token_win(policy, policy.render([Message("user", (Text(text),))]))
    ours = [greedy(policy, Text(text)), greedy(policy, Image(pixels), Text(text))]
    policy.save(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    assert "shared_prefix" not in (tmp_path / "config.json").read_text()
    np.save(tmp_path / "picture.npy", pixels)
    script = tmp_path / "without_copd.py"
    script.write_text(WITHOUT_COPD)
    result = subprocess.run(
        [sys.executable, "-I", str(script), str(tmp_path), text],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ours
    assert ours[0] != ours[1]


def test_save_and_load_is_the_identity(seeing_folder, reading_folders, tmp_path: Path):
    for name, folder in {"seeing": seeing_folder, **reading_folders}.items():
        policy = Policy.load(folder)
        policy.save(tmp_path / name)
        again = Policy.load(tmp_path / name)
        for key, tensor in policy.model.state_dict().items():
            assert torch.equal(again.model.state_dict()[key], tensor), key
        assert torch.equal(again.banned, policy.banned)
        assert again.end_tokens == policy.end_tokens
        assert again.modalities == policy.modalities
        messages = [Message("user", (Text("Hi"),))]
        assert torch.equal(again.render(messages).input_ids, policy.render(messages).input_ids)


def test_a_copy_is_independent(seeing_folder):
    policy = Policy.load(seeing_folder)
    twin = copy.deepcopy(policy)
    before = greedy(policy, Text("Hi"))
    with torch.no_grad():
        twin.head.mul_(-1)
    assert greedy(policy, Text("Hi")) == before
    assert greedy(twin, Text("Hi")) != before


def test_weights_are_float32_and_in_eval_mode(seeing):
    assert {parameter.dtype for parameter in seeing.model.parameters()} == {torch.float32}
    assert not any(module.training for module in seeing.model.modules())


def test_bfloat16_weights(seeing_folder):
    policy = Policy.load(seeing_folder, dtype="bfloat16")
    assert policy.head.dtype == torch.bfloat16
    assert len(greedy(policy, Text("Hi"))) > 0


def test_banned_are_control_and_nameless_tokens_but_not_the_end(seeing):
    names = seeing.tokenizer.convert_ids_to_tokens(range(len(seeing.tokenizer)))
    banned = seeing.banned.tolist()
    assert seeing.vocab_size == 112
    assert {name for name, is_banned in zip(names, banned, strict=False) if is_banned} == {
        "<|endoftext|>",
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    }
    assert all(banned[len(names) :])
    (end,) = seeing.end_tokens
    assert names[end] == "<|im_end|>"


def test_placeholders_are_banned_even_as_ordinary_tokens(seeing_folder, tmp_path: Path):
    link(seeing_folder, tmp_path, but="tokenizer.json", also="tokenizer_config.json")
    tokenizer = json.loads((seeing_folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((seeing_folder / "tokenizer_config.json").read_text())
    settings.pop("extra_special_tokens", None)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    policy = Policy.load(tmp_path)
    config = policy.model.config
    assert policy.banned[config.image_token_id]
    assert policy.banned[config.video_token_id]
    assert policy.banned[config.vision_start_token_id]
    assert not policy.banned[policy.tokenizer.convert_tokens_to_ids("<|im_start|>")]


def test_all_declared_ends_end(reading_folders, tmp_path: Path):
    link(reading_folders["llama"], tmp_path, but="generation_config.json")
    settings = {"eos_token_id": [7, 8], "suppress_tokens": [3]}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    policy = Policy.load(tmp_path)
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert policy.end_tokens == frozenset([7, 8, end])
    assert policy.banned[3]
    settings = policy.model.generation_config
    assert settings is not None
    assert settings.eos_token_id == [7, 8, end]


def test_a_model_that_never_ends_is_refused(reading_folders, tmp_path: Path):
    link(reading_folders["llama"], tmp_path, but="tokenizer_config.json", also="config.json")
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((reading_folders["llama"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    settings = json.loads((reading_folders["llama"] / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    with pytest.raises(ValueError, match="Set eos_token"):
        Policy.load(tmp_path)


@pytest.mark.parametrize(
    "path",
    ["./nowhere", "/nowhere/model", "~/nowhere", "runs/a/final", "nowhere/", Path("nowhere")],
)
def test_a_missing_folder_is_not_looked_for_on_the_hub(path):
    with pytest.raises(ValueError, match="Check the path"):
        Policy.load(path)


def test_a_missing_folder_in_an_existing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in ("runs/final", "runs", tmp_path):
        with pytest.raises(ValueError, match="Check the path"):
            Policy.load(path)


def test_an_unknown_dtype_is_refused(seeing_folder):
    with pytest.raises(ValueError, match="expected one of float32, bfloat16, float16"):
        Policy.load(seeing_folder, dtype="float31")


def test_missing_weights_are_refused(reading_folders, tmp_path: Path):
    link(reading_folders["llama"], tmp_path, but="model.safetensors")
    weights = load_file(reading_folders["llama"] / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got none for model\.layers\.0\.mlp\.up_proj"):
        Policy.load(tmp_path)


def link(source: Path, target: Path, *, but: str, also: str = "") -> None:
    """Link the files of `source`, some left out."""
    for file in source.iterdir():
        if file.name not in (but, also):
            (target / file.name).symlink_to(file)

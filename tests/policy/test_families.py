"""Every supported family: passes and exports agree with transformers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText
from transformers.image_utils import SizeDict

from copd.functional import token_logprobs
from copd.policy import Adapters, Policy
from copd.types import Image, Message, Text, Video
from tests.packing import flat
from tests.policy.conftest import KINDS
from tests.policy.readers.test_packed import (
    RAGGED,
    assert_same_gradients,
    gradients,
    packed_logprobs,
    padded_logprobs,
)
from tests.policy.sampling.test_greedy import greedy


@pytest.fixture(scope="module")
def seeing_25(seeing_25_folder: Path) -> Policy:
    return Policy.load(seeing_25_folder)


@pytest.fixture(scope="module")
def plain_25(seeing_25_folder: Path):
    return AutoModelForImageTextToText.from_pretrained(seeing_25_folder).eval()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", KINDS)
def test_qwen25_packed_equals_padded(seeing_25, plain_25, prompts_of, invent, kind):
    prompts = prompts_of(seeing_25, kind)
    completions = invent(seeing_25, RAGGED[: len(prompts)])
    packed = packed_logprobs(seeing_25, prompts, completions)
    plain = padded_logprobs(plain_25, seeing_25.banned, prompts, completions, "right")
    torch.testing.assert_close(packed, plain, atol=1e-5, rtol=0)
    grads = gradients(seeing_25.model, packed)
    assert_same_gradients(grads, gradients(plain_25, plain))
    sees = any(".visual." in name and grad.norm() > 0 for name, grad in grads.items())
    assert sees == (kind != "text")


@pytest.mark.parametrize("kind", ["text", "image", "video"])
def test_qwen25_greedy_equals_generate(seeing_25, plain_25, prompts_of, kind):
    prompts = prompts_of(seeing_25, kind)
    found = seeing_25.sample(
        prompts, group_size=1, max_tokens=20, temperature=0.0, generator=seeded()
    )
    for prompt, (completion,) in zip(prompts, found, strict=True):
        media = dict(prompt.media)
        if media:
            media["mm_token_type_ids"] = media["mm_token_type_ids"][None]
        expected = greedy(plain_25, seeing_25, prompt.input_ids, **media)
        assert completion.token_ids.tolist() == expected


def test_qwen25_times_of_frames_are_in_the_positions(seeing_25, plain_25):
    """The times of a slow video exceed the text's positions; answers continue as in `generate`."""
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    slow, fast = (
        seeing_25.render([Message("user", (Video(frames, fps=fps), Text("?")))])
        for fps in (0.5, 4.0)
    )
    assert slow.media["second_per_grid_ts"].tolist() == [4.0]
    positions = seeing_25.backbone.positions(slow)
    times = positions[0][slow.media["mm_token_type_ids"] == 2].unique()
    assert (times.diff() == 8).all()  # two a second
    assert positions[0].max() > positions[0][-1]
    expected = greedy(
        plain_25,
        seeing_25,
        slow.input_ids,
        **slow.media | {"mm_token_type_ids": slow.media["mm_token_type_ids"][None]},
    )
    found = seeing_25.sample(
        [slow], group_size=1, max_tokens=20, temperature=0.0, generator=seeded()
    )
    assert found[0][0].token_ids.tolist() == expected
    states = [seeing_25.read([prompt]).last_states for prompt in (slow, fast)]
    assert not torch.allclose(*states, atol=1e-3)


def test_positions_are_built_once_for_a_layout(seeing, monkeypatch):
    """Positions depend on the size of an image, are those of transformers, and their cache is
    bounded."""
    monkeypatch.setattr("copd.policy.backbone._MAX_LAYOUTS", 2)
    layouts = seeing.backbone.layouts
    layouts.clear()
    for height, width in ((16, 64), (64, 16), (16, 64), (32, 32), (16, 16), (16, 64)):
        picture = Image(np.zeros((height, width, 3), np.uint8))
        prompt = seeing.render([Message("user", (picture, Text("?")))])
        expected, _ = seeing.model.base_model.get_rope_index(
            prompt.input_ids[None],
            mm_token_type_ids=prompt.media["mm_token_type_ids"][None],
            image_grid_thw=prompt.media["image_grid_thw"],
        )
        positions = seeing.backbone.positions(prompt)
        assert torch.equal(positions, expected[:, 0])
        assert seeing.backbone.positions(prompt) is positions
        assert len(layouts) <= 2
    layouts.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_qwen25_sampling_agrees_with_scoring(seeing_25, prompts_of, kind):
    prompts = prompts_of(seeing_25, kind)
    groups = seeing_25.sample(
        prompts, group_size=3, max_tokens=8, temperature=1.0, generator=seeded()
    )
    states = seeing_25.score(prompts, *flat([[c.token_ids for c in group] for group in groups]))
    scored, _ = token_logprobs(
        states.hidden, seeing_25.head, states.token_ids, banned=seeing_25.banned
    )
    sampled = torch.cat([torch.from_numpy(c.logprobs) for group in groups for c in group])
    torch.testing.assert_close(scored, sampled, atol=2e-5, rtol=0)


def test_qwen25_bounds_are_per_frame(seeing_25):
    """A frame of 128 x 64 pixels is too large for 64 x 64, however many frames there are."""
    video_processor = seeing_25.renderer.processor.video_processor
    bounds = {"shortest_edge": 256, "longest_edge": 64 * 64}
    frames = torch.zeros(1, 16, 3, 128, 64, dtype=torch.uint8)
    resized = video_processor.resize(frames, SizeDict(**bounds), 3, factor=16, temporal_factor=2)
    assert resized.shape == (1, 16, 3, 80, 32)
    older = type(video_processor)(min_pixels=512, max_pixels=1024, patch_size=8)
    assert dict(older.size) == {"shortest_edge": 512, "longest_edge": 1024}


WITHOUT_COPD = """
import json, sys, warnings
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

assert "copd" not in sys.modules
warnings.simplefilter("ignore")
answers = {}
for name, sees in json.loads(sys.argv[1]).items():
    folder = sys.argv[2] + "/" + name
    factory = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model = factory.from_pretrained(folder).eval()
    assert AutoTokenizer.from_pretrained(folder).chat_template
    inputs = load_file(folder + ".safetensors")
    settings = {}
    if name.endswith("adapter"):  # with the base's generation settings, which ban nothing
        settings = {"suppress_tokens": json.loads(sys.argv[3])}
    output = model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=0,
        **settings,
    )
    answers[name] = output[0, inputs["input_ids"].shape[1] :].tolist()
print(json.dumps(answers))
"""


@pytest.mark.slow
def test_transformers_alone_reads_every_family_and_adapters_merged_or_not(
    seeing, seeing_folder, seeing_25_folder, reading_folders, prompts_of, tmp_path
):
    """In a process with only transformers, and with PEFT for adapters that are not merged."""
    ours, sees = {}, {}

    def export(name: str, policy: Policy, folder: Path, kind: str, *, adapter: bool) -> None:
        prompt = prompts_of(policy, kind)[0]
        media = dict(prompt.media)
        if media:
            media["mm_token_type_ids"] = media["mm_token_type_ids"][None]
        save_file({"input_ids": prompt.input_ids[None], **media}, tmp_path / f"{name}.safetensors")
        (policy.save_adapter if adapter else policy.save)(tmp_path / name)
        found = policy.sample(
            [prompt], group_size=1, max_tokens=12, temperature=0.0, generator=seeded()
        )
        ours[name] = found[0][0].token_ids.tolist()
        sees[name] = policy.renderer.processor is not None

    folders = {"qwen3_vl": seeing_folder, "qwen25_vl": seeing_25_folder, **reading_folders}
    for family, folder in folders.items():
        kind = "video" if "vl" in family else "text"
        base = Policy.load(folder)
        export(family, base, folder, kind, adapter=False)
        adapters = Adapters(base.model, rank=4, alpha=8.0, target_modules="all-linear", seed=0)
        adapters.add("a")
        branch = base.with_adapter(adapters, "a")
        for parameter in branch.parameters().values():
            torch.nn.init.normal_(parameter, std=0.2, generator=seeded())
        export(f"{family}_merged", branch, folder, kind, adapter=False)
        export(f"{family}_adapter", branch, folder, kind, adapter=True)
        assert ours[f"{family}_merged"] != ours[family]

    banned = json.dumps(seeing.banned.nonzero()[:, 0].tolist())  # the same in all: one tokenizer
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_COPD, json.dumps(sees), str(tmp_path), banned],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == ours

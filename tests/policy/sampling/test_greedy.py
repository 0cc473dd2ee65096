"""Greedy sampling equals transformers' `generate`, on a GPU as well."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from copd.policy import Policy

KINDS = ["text", "image", "video", "mixed"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["text", "image", "video"])
def test_greedy_equals_generate(seeing, seeing_folder: Path, prompts_of, kind):
    plain = AutoModelForImageTextToText.from_pretrained(seeing_folder).eval()
    prompts = prompts_of(seeing, kind)
    found = seeing.sample(prompts, group_size=1, max_tokens=20, temperature=0.0, generator=seeded())
    for prompt, (completion,) in zip(prompts, found, strict=True):
        media = dict(prompt.media)
        if media:
            media["mm_token_type_ids"] = media["mm_token_type_ids"][None]
        assert completion.token_ids.tolist() == greedy(plain, seeing, prompt.input_ids, **media)


@pytest.mark.parametrize("model", ["llama", "qwen3"])
def test_greedy_equals_generate_for_text_models(reading, reading_folders, prompts_of, model):
    policy = reading[model]
    plain = AutoModelForCausalLM.from_pretrained(reading_folders[model]).eval()
    prompts = prompts_of(policy, "text")
    found = policy.sample(prompts, group_size=1, max_tokens=20, temperature=0.0, generator=seeded())
    for prompt, (completion,) in zip(prompts, found, strict=True):
        assert completion.token_ids.tolist() == greedy(plain, policy, prompt.input_ids)


def greedy(plain, policy: Policy, input_ids: torch.Tensor, **media) -> list[int]:
    output = plain.generate(
        input_ids=input_ids[None],
        attention_mask=torch.ones_like(input_ids)[None],
        **media,
        do_sample=False,
        max_new_tokens=20,
        suppress_tokens=policy.banned.nonzero()[:, 0].tolist(),
        eos_token_id=sorted(policy.end_tokens),
        pad_token_id=0,
    )
    return output[0, len(input_ids) :].tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_takes_the_tokens_of_the_cpu(seeing, seeing_folder, prompts_of, exact_gpu, kind):
    policy = Policy.load(seeing_folder, device="cuda")
    settings = {"group_size": 1, "max_tokens": 300, "temperature": 0.0}
    on_gpu, on_cpu = (
        p.sample(prompts_of(p, kind), **settings, generator=torch.Generator(p.device))
        for p in (policy, seeing)
    )
    for group, expected in zip(on_gpu, on_cpu, strict=True):
        assert group[0].token_ids.tolist() == expected[0].token_ids.tolist()

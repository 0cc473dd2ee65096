"""Policies that share a model: passes against PEFT's own, and an unchanged model after them."""

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from copd.functional import nearest_of_rank, token_logprobs
from copd.policy import Adapters, Policy
from tests.packing import flat

LENGTHS = [[3, 5], [2, 2], [4], [1, 6]]
MODELS = [("llama", "text"), ("qwen3", "text"), *[("seeing", k) for k in ("image", "video")]]


@pytest.fixture(scope="module")
def folders(seeing_folder: Path, reading_folders: dict[str, Path]) -> dict[str, Path]:
    return {"seeing": seeing_folder, **reading_folders}


def share(folder: Path, *names: str, **settings) -> tuple[Policy, Adapters, dict[str, Policy]]:
    """Build a resident model, and policies whose adapters differ from it and from each other."""
    base = Policy.load(folder)
    given = {"rank": 4, "alpha": 6.0, "target_modules": "all-linear", "seed": 0, **settings}
    adapters = Adapters(base.model, **given)
    policies = {}
    for seed, name in enumerate(names):
        adapters.add(name)
        policies[name] = base.with_adapter(adapters, name)
        generator = torch.Generator().manual_seed(seed)
        for parameter in policies[name].parameters().values():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return base.with_adapter(adapters, None), adapters, policies


def peft_model(folder: Path, adapter: Path) -> Any:
    """Load the plain model with an adapter folder, with PEFT alone."""
    sees = (folder / "processor_config.json").exists()
    factory = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    with warnings.catch_warnings():  # PEFT uses a name that transformers deprecates
        warnings.simplefilter("ignore", FutureWarning)
        return peft.PeftModel.from_pretrained(
            factory.from_pretrained(folder).eval(), adapter, is_trainable=True
        )


def logits_by_row(model: Any, prompts, completions) -> torch.Tensor:
    """Return the logits that predict completion tokens, one plain unpadded row at a time."""
    found = []
    for prompt, group in zip(prompts, completions, strict=True):
        for ids in group:
            row = torch.cat([prompt.input_ids, torch.from_numpy(ids)])[None]
            media = dict(prompt.media)
            if media:
                kinds = torch.zeros_like(row)
                kinds[0, : len(prompt.input_ids)] = media["mm_token_type_ids"]
                media["mm_token_type_ids"] = kinds
            found.append(model(input_ids=row, **media).logits[0, -len(ids) - 1 : -1])
    return torch.cat(found)


def logits(policy: Policy, prompts, completions) -> torch.Tensor:
    return policy.score(prompts, *flat(completions)).hidden @ policy.head.T


def state_of(adapters: Adapters) -> dict[str, Any]:
    """Return what a pass of another policy must leave as it was."""
    modules: dict[str, Any] = dict(adapters.model.named_modules())
    return {
        "active": {n: list(m.active_adapters) for n, m in modules.items() if hasattr(m, "lora_A")},
        "requires_grad": {n: p.requires_grad for n, p in adapters.model.named_parameters()},
        "training": {n: m.training for n, m in modules.items()},
        "random": torch.get_rng_state().tolist(),
        "weights": {n: p.detach().clone() for n, p in adapters.model.named_parameters()},
        "grad": {n: p.grad is None for n, p in adapters.model.named_parameters()},
    }


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())


@pytest.mark.parametrize(("model", "kind"), MODELS)
def test_logits_and_gradients_are_those_of_peft(folders, prompts_of, invent, tmp_path, model, kind):
    _, _, policies = share(folders[model], "a", "b")
    policy = policies["a"]
    prompts = prompts_of(policy, kind)
    completions = invent(policy, LENGTHS[: len(prompts)])
    policy.save_adapter(tmp_path / "a")
    plain = peft_model(folders[model], tmp_path / "a")
    ours, theirs = logits(policy, prompts, completions), logits_by_row(plain, prompts, completions)
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert (ours - logits(policies["b"], prompts, completions)).abs().max() > 0.1

    for part in (ours, theirs):
        part.log_softmax(-1)[:, 7].mean().backward()
    gradients = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): p.grad
        for name, p in plain.named_parameters()
        if p.requires_grad
    }
    parameters = policy.parameters()
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        assert parameter.grad is not None and gradients[name] is not None, name
        assert (parameter.grad - gradients[name]).norm() <= 1e-4 * gradients[name].norm(), name
    own = {id(p) for p in parameters.values()}
    others = [p for p in policy.model.parameters() if id(p) not in own]
    assert others and all(p.grad is None for p in others)


def test_adapters_off_is_the_base_bit_for_bit_and_a_fresh_one_changes_nothing(
    seeing, seeing_folder, prompts_of, invent
):
    base, adapters, _ = share(seeing_folder, "a")
    adapters.add("fresh")
    completions = invent(seeing, LENGTHS)
    plain = Policy.load(seeing_folder)
    plain.set_vision_trainable(False)
    fresh = base.with_adapter(adapters, "fresh")
    expected, *others = (
        logits(policy, prompts_of(seeing, "mixed"), completions) for policy in (plain, base, fresh)
    )
    assert all(torch.equal(other, expected) for other in others)


def test_fresh_adapters_are_equal_and_come_from_the_seed_alone(reading_folders):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    starts = []
    for seed in (0, 0, 1):
        adapters = Adapters(
            Policy.load(reading_folders["llama"]).model,
            rank=2,
            alpha=2.0,
            target_modules="all-linear",
            seed=seed,
        )
        adapters.add("a")
        adapters.add("b")
        pairs = zip(
            adapters.parameters("a").values(), adapters.parameters("b").values(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)
        starts.append(next(iter(adapters.parameters("a").values())).detach().clone())
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["b", None])
def test_a_pass_of_another_policy_leaves_everything_as_it_was(
    seeing_folder, prompts_of, invent, name
):
    base, adapters, policies = share(seeing_folder, "a", "b")
    student = policies["a"]
    teacher = base if name is None else policies[name]
    prompts = prompts_of(student, "image")
    completions = invent(student, LENGTHS[:3])
    at_rest = state_of(adapters)
    with student.active():
        inside = state_of(adapters)
        alone = logits(student, prompts, completions)
        with torch.no_grad():
            teacher.score(prompts, *flat(completions))
            generator = torch.Generator().manual_seed(0)
            teacher.sample(
                prompts, group_size=2, max_tokens=3, temperature=1.0, generator=generator
            )
        assert_same_state(inside, state_of(adapters))
        assert torch.equal(logits(student, prompts, completions), alone)
        with pytest.raises(RuntimeError), teacher.active():
            raise RuntimeError
        assert adapters.active == "a"
    assert_same_state(at_rest, state_of(adapters))
    assert adapters.active is None


def test_a_backward_pass_after_a_switch_has_the_whole_gradient(reading_folders, prompts_of, invent):
    _, _, policies = share(reading_folders["qwen3"], "a", "b")
    prompts = prompts_of(policies["a"], "text")
    completions = invent(policies["a"], LENGTHS[:3])

    def gradients(interrupted: bool) -> list[torch.Tensor]:
        prefix = policies["a"].read(prompts)
        states = policies["a"].score(prefix, *flat(completions))
        if interrupted:
            policies["b"].score(prompts, *flat(completions))
        (states.hidden @ policies["a"].head.T).log_softmax(-1)[:, 5].sum().backward()
        found = [p.grad for p in policies["a"].parameters().values() if p.grad is not None]
        policies["a"].model.zero_grad()
        return found

    alone, interrupted = gradients(False), gradients(True)
    assert len(alone) == len(interrupted) == len(policies["a"].parameters())
    assert all(torch.equal(a, b) for a, b in zip(alone, interrupted, strict=True))


def test_sampling_agrees_with_scoring(seeing_folder, prompts_of):
    _, _, policies = share(seeing_folder, "a", "b")
    policy = policies["b"]
    prompts = prompts_of(policy, "mixed")
    generator = torch.Generator().manual_seed(0)
    groups = policy.sample(
        prompts, group_size=3, max_tokens=8, temperature=1.0, generator=generator
    )
    states = policy.score(prompts, *flat([[c.token_ids for c in group] for group in groups]))
    scored = token_logprobs(states.hidden, policy.head, states.token_ids, banned=policy.banned)[0]
    sampled = torch.cat([torch.from_numpy(c.logprobs) for group in groups for c in group])
    assert (scored - sampled).abs().max() < 1e-4


@pytest.mark.parametrize(("model", "kind"), [("qwen3", "text"), ("seeing", "image")])
def test_a_merged_folder_is_an_ordinary_model_and_the_resident_one_stays(
    folders, prompts_of, invent, tmp_path, model, kind
):
    _, adapters, policies = share(folders[model], "a", "b")
    before = state_of(adapters)
    policies["a"].save(tmp_path)
    assert_same_state(before, state_of(adapters))
    assert not (tmp_path / "adapter_config.json").exists()
    merged = Policy.load(tmp_path)
    assert merged.owns_model
    original = {n: p.shape for n, p in Policy.load(folders[model]).parameters().items()}
    assert {n: p.shape for n, p in merged.parameters().items()} == original
    prompts = prompts_of(merged, kind)
    completions = invent(merged, LENGTHS[: len(prompts)])
    ours, theirs = (logits(p, prompts, completions) for p in (policies["a"], merged))
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_a_base_kept_in_bfloat16_gives_the_bits_of_autocast(folders, prompts_of, invent):
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        base, adapters, policies = share(folders["llama"], "a", dtype=dtype)
        prompts = prompts_of(base, "text")
        completions = invent(base, LENGTHS[: len(prompts)])
        with torch.autocast("cpu", torch.bfloat16):
            scores = [logits(policy, prompts, completions) for policy in (policies["a"], base)]
        scores[0].float().log_softmax(-1)[:, 7].mean().backward()
        found.append((*scores, *(p.grad for p in policies["a"].parameters().values())))
        dtypes = {layer.get_base_layer().weight.dtype for layer in adapters._layers.values()}
        assert dtypes == {dtype}
        assert all(p.dtype == torch.float32 for p in policies["a"].parameters().values())
    for wide, narrow in zip(*found, strict=True):
        assert wide is not None and narrow is not None and torch.equal(wide, narrow)


def test_merged_weights_have_the_type_of_the_loaded_model(folders):
    _, adapters, _ = share(folders["llama"], "a", dtype=torch.bfloat16)
    for name in ("a", None):
        assert {w.dtype for w in adapters.merged(name).values()} == {torch.float32}
    path, layer = next(iter(adapters._layers.items()))
    change = layer.get_delta_weight("branch_a")
    expected = layer.get_base_layer().weight.float() + change
    assert torch.equal(adapters.merged("a")[f"{path}.weight"], expected)


def test_an_adapter_takes_weights_of_another_rank(reading_folders, prompts_of, invent):
    base, _, policies = share(reading_folders["llama"], "a", "b")
    prompts = prompts_of(base, "text")
    completions = invent(base, LENGTHS[:3])
    other = logits(policies["b"], prompts, completions)
    wide = {
        name: torch.cat([p, p], dim=0 if name.endswith("A") else 1).detach()
        for name, p in policies["a"].parameters().items()
    }
    doubled = {name: w * (0.5 if name.endswith("B") else 1.0) for name, w in wide.items()}
    expected = logits(policies["a"], prompts, completions)
    policies["a"].resize_adapter(doubled)
    for name, parameter in policies["a"].parameters().items():
        parameter.data.copy_(doubled[name])
    assert torch.allclose(logits(policies["a"], prompts, completions), expected, atol=1e-4)
    assert torch.equal(logits(policies["b"], prompts, completions), other)


def test_a_bounded_rank_is_exported_as_the_nearest_change(reading_folders, tmp_path):
    _, adapters, policies = share(reading_folders["llama"], "a")
    policies["a"].save_adapter(tmp_path / "low", rank=2)
    config: Any = peft.LoraConfig.from_pretrained(tmp_path / "low")
    assert (config.r, config.lora_alpha) == (2, 3.0)  # the scale 6 / 4 stays
    model = peft_model(reading_folders["llama"], tmp_path / "low").merge_and_unload()
    state = {name: p.detach() for name, p in policies["a"].parameters().items()}
    nearest = nearest_of_rank(state, 2)
    path = "model.layers.1.mlp.down_proj"
    change = model.get_submodule(path).weight - adapters.merged(None)[f"{path}.weight"]
    expected = 1.5 * nearest[f"{path}.lora_B"] @ nearest[f"{path}.lora_A"]
    assert torch.allclose(change, expected, atol=1e-5)


def test_only_the_text_model_is_adapted_and_the_tower_stays_frozen(seeing_folder):
    _, _, policies = share(seeing_folder, "a")
    assert not any("visual" in name or "lm_head" in name for name in policies["a"].parameters())
    policies["a"].set_vision_trainable(True)
    assert not any(p.requires_grad for p in policies["a"].model.model.visual.parameters())


def test_target_modules_by_name(reading_folders):
    _, _, policies = share(reading_folders["llama"], "a", target_modules=["q_proj", "v_proj"])
    ends = {name.split(".")[-2] for name in policies["a"].parameters()}
    assert ends == {"q_proj", "v_proj"}


@pytest.mark.parametrize("wrong", ["embed_tokens", "lm_head"])
def test_embeddings_and_the_head_are_refused(reading_folders, wrong):
    with pytest.raises(ValueError, match=r'use "all-linear"'):
        share(reading_folders["llama"], "a", target_modules=["q_proj", wrong])


def test_unknown_target_modules_are_refused(reading_folders):
    with pytest.raises(ValueError, match="not found"):
        share(reading_folders["llama"], "a", target_modules=["query"])


def test_a_removed_adapter_leaves_the_others(reading_folders, prompts_of, invent):
    _, adapters, policies = share(reading_folders["llama"], "a", "b")
    prompts = prompts_of(policies["b"], "text")
    completions = invent(policies["b"], LENGTHS[:3])
    expected = logits(policies["b"], prompts, completions)
    adapters.remove("a")
    assert "a" not in adapters and "b" in adapters
    assert torch.equal(logits(policies["b"], prompts, completions), expected)

"""Gradient checkpointing: the same gradient, and fewer stored activations."""

import pytest
import torch

from copd.policy import Adapters, Policy
from tests.packing import flat
from tests.policy.readers.test_packed import (
    RAGGED,
    assert_same_gradients,
    gradients,
    packed_logprobs,
)


def saved_bytes(policy: Policy, prompts, completions) -> int:
    """Return the bytes that the graph of a pass stores, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    stored = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = policy.score(prompts, *flat(completions))
    assert states.hidden.requires_grad
    return sum(stored.values())


@pytest.mark.parametrize("kind", ["text", "mixed"])
def test_the_gradient_is_the_same_and_less_is_stored(
    seeing, seeing_folder, prompts_of, invent, kind
):
    prompts = prompts_of(seeing, kind)
    completions = invent(seeing, RAGGED[: len(prompts)])
    expected = gradients(seeing.model, packed_logprobs(seeing, prompts, completions))
    policy = Policy.load(seeing_folder)
    policy.enable_gradient_checkpointing()
    found = gradients(policy.model, packed_logprobs(policy, prompts, completions))
    assert_same_gradients(found, expected)
    assert not any(module.training for module in policy.model.modules())
    less = saved_bytes(policy, prompts, completions)
    assert less < 0.5 * saved_bytes(seeing, prompts, completions)


def test_a_prefix_read_for_several_passes_gives_its_gradient(
    seeing, seeing_folder, prompts_of, invent
):
    """As in an update after sampling: cut, scored in slices, then the backward pass of prompts."""
    prompts = prompts_of(seeing, "mixed")
    completions = invent(seeing, RAGGED)
    found = []
    for policy in (Policy.load(seeing_folder), Policy.load(seeing_folder)):
        if found:
            policy.enable_gradient_checkpointing()
        prefix = policy.read(prompts)
        leaves = prefix.cut()
        for part in (slice(0, 2), slice(2, 4)):
            states = policy.score(leaves.select(part), *flat(completions[part]))
            (states.hidden @ policy.head.T).log_softmax(-1)[:, 5].sum().backward()
        prefix.backward(leaves)
        found.append({n: p.grad for n, p in policy.model.named_parameters() if p.grad is not None})
    assert_same_gradients(found[1], found[0])


def test_layers_run_again_with_the_adapter_of_the_first_pass(reading_folders, prompts_of, invent):
    base = Policy.load(reading_folders["llama"])
    adapters = Adapters(base.model, rank=4, alpha=8.0, target_modules="all-linear", seed=0)
    policies = {}
    for seed, name in enumerate("ab"):
        adapters.add(name)
        policies[name] = base.with_adapter(adapters, name)
        generator = torch.Generator().manual_seed(seed)
        for parameter in policies[name].parameters().values():
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    prompts = prompts_of(base, "text")
    completions = invent(base, RAGGED[:3])
    expected = gradients(base.model, packed_logprobs(policies["a"], prompts, completions))
    policies["a"].enable_gradient_checkpointing()
    logprobs = packed_logprobs(policies["a"], prompts, completions)
    with policies["b"].active():
        found = gradients(base.model, logprobs)
        assert adapters.active == "b"
    assert len(found) == len(policies["a"].parameters())
    assert_same_gradients(found, expected)

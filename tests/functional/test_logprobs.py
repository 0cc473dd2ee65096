"""Chunked log-probabilities against the plain formula: values, gradients, banned tokens, memory."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from copd.functional import full_logprobs, token_logprobs, topk_logprobs

N, D, V = 13, 6, 11
BANNED = torch.zeros(V, dtype=torch.bool).index_fill(0, torch.tensor([0, 7]), True)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    allowed = (~BANNED).nonzero()[:, 0]
    token_ids = allowed[torch.randint(len(allowed), (N,), generator=generator)]
    return hidden, head, token_ids


def plain(hidden: Tensor, head: Tensor, banned: Tensor | None, temperature: float) -> Tensor:
    logits = (hidden @ head.T).float() / temperature
    return (logits if banned is None else logits.masked_fill(banned, -torch.inf)).log_softmax(-1)


@pytest.mark.parametrize("chunk_size", [1, 4, 13, 1024])
@pytest.mark.parametrize("banned", [None, BANNED], ids=["all", "banned"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_the_plain_formula(
    chunk_size: int, banned: Tensor | None, temperature: float
):
    hidden, head, token_ids = inputs()
    weights = torch.linspace(-1, 2, N)
    expected = plain(hidden, head, banned, temperature)[torch.arange(N), token_ids]
    gradients = torch.autograd.grad((weights * expected).sum(), (hidden, head))
    logprobs, _ = token_logprobs(
        hidden, head, token_ids, banned=banned, temperature=temperature, chunk_size=chunk_size
    )
    torch.testing.assert_close(logprobs, expected)
    got = torch.autograd.grad((weights * logprobs).sum(), (hidden, head))
    torch.testing.assert_close(got, gradients)


def test_the_gradient_is_that_of_finite_differences():
    hidden, head, token_ids = inputs(torch.float64)

    def logprobs(hidden: Tensor, head: Tensor) -> Tensor:
        return token_logprobs(
            hidden, head, token_ids, banned=BANNED, temperature=0.8, chunk_size=5
        )[0]

    assert torch.autograd.gradcheck(logprobs, (hidden, head))


def test_a_frozen_head_or_frozen_states_get_no_gradient():
    hidden, head, token_ids = inputs()
    full = torch.autograd.grad(token_logprobs(hidden, head, token_ids)[0].sum(), (hidden, head))
    for index in range(2):
        pair = [hidden.detach(), head.detach()]
        pair[index].requires_grad_()
        token_logprobs(pair[0], pair[1], token_ids)[0].sum().backward()
        assert pair[1 - index].grad is None
        torch.testing.assert_close(pair[index].grad, full[index])


@pytest.mark.parametrize("banned", [None, BANNED], ids=["all", "banned"])
def test_the_entropy_is_finite_and_carries_no_gradient(banned: Tensor | None):
    hidden, head, token_ids = inputs()
    _, entropy = token_logprobs(hidden, head, token_ids, banned=banned, chunk_size=4)
    expected = torch.distributions.Categorical(logits=plain(hidden, head, banned, 1.0)).entropy()
    torch.testing.assert_close(entropy, expected.detach())
    assert not entropy.requires_grad


def test_banned_tokens_are_impossible_and_pass_no_gradient():
    hidden, head, token_ids = inputs()
    full = full_logprobs(hidden, head, banned=BANNED)
    assert bool(full[:, BANNED].isneginf().all())
    torch.testing.assert_close(full.exp().sum(-1), torch.ones(N))
    logprobs, _ = token_logprobs(hidden, head, token_ids, banned=BANNED)
    (gradient,) = torch.autograd.grad(logprobs.sum(), head)
    assert torch.equal(gradient[BANNED], torch.zeros(2, D))
    assert bool((gradient[~BANNED] != 0).any(dim=-1).all())


def test_a_banned_token_in_a_completion_is_minus_infinity():
    hidden, head, token_ids = inputs()
    token_ids[3] = 7
    logprobs, entropy = token_logprobs(hidden, head, token_ids, banned=BANNED)
    assert bool(logprobs[3].isneginf())
    assert int(logprobs.isfinite().sum()) == N - 1
    assert bool(entropy.isfinite().all())
    (gradient,) = torch.autograd.grad(logprobs.sum(), head)
    assert torch.equal(gradient[BANNED], torch.zeros(2, D))


def test_bfloat16_inputs_get_a_float32_softmax_and_bfloat16_gradients():
    hidden, head, token_ids = inputs(torch.bfloat16)
    logprobs, entropy = token_logprobs(hidden, head, token_ids, chunk_size=4)
    expected = plain(hidden, head, None, 1.0)[torch.arange(N), token_ids]
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs, expected)
    got = torch.autograd.grad(logprobs.sum(), (hidden, head))
    expected_gradients = torch.autograd.grad(expected.sum(), (hidden, head))
    assert [gradient.dtype for gradient in got] == [torch.bfloat16] * 2
    torch.testing.assert_close(got, expected_gradients, atol=0.05, rtol=0.02)


def test_autocast_multiplies_in_bfloat16_and_returns_float32_gradients():
    hidden, head, token_ids = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        logprobs, _ = token_logprobs(hidden, head, token_ids, chunk_size=4)
    low = plain(hidden.bfloat16(), head.bfloat16(), None, 1.0)[torch.arange(N), token_ids]
    torch.testing.assert_close(logprobs, low)
    gradients = torch.autograd.grad(logprobs.sum(), (hidden, head))
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2
    cast, _ = token_logprobs(hidden.bfloat16(), head.bfloat16(), token_ids, chunk_size=4)
    torch.testing.assert_close(gradients, torch.autograd.grad(cast.sum(), (hidden, head)))


def test_topk_is_the_sorted_head_of_the_full_distribution():
    hidden, head, _ = inputs()
    full = full_logprobs(hidden, head, banned=BANNED, temperature=0.7)
    logprobs, ids = topk_logprobs(hidden, head, k=4, banned=BANNED, temperature=0.7, chunk_size=5)
    torch.testing.assert_close(logprobs, full.sort(descending=True).values[:, :4])
    torch.testing.assert_close(full.gather(-1, ids), logprobs)
    assert not logprobs.requires_grad
    assert not bool(BANNED[ids].any())


def test_topk_of_the_whole_vocabulary_is_the_full_distribution():
    hidden, head, _ = inputs()
    logprobs, ids = topk_logprobs(hidden, head, k=V, banned=BANNED)
    restored = torch.zeros(N, V).scatter(-1, ids, logprobs)
    torch.testing.assert_close(restored, full_logprobs(hidden, head, banned=BANNED))


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else [result]
        sizes = [part.numel() for part in parts if isinstance(part, Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def test_no_tensor_grows_with_tokens_times_vocabulary():
    hidden = torch.randn(400, 8, requires_grad=True)
    head = torch.randn(300, 8, requires_grad=True)
    token_ids = torch.randint(300, (400,))
    with LargestTensor() as largest:
        token_logprobs(hidden, head, token_ids, chunk_size=16)[0].sum().backward()
        topk_logprobs(hidden, head, k=5, chunk_size=16)
    assert largest.numel == 16 * 300


def test_a_temperature_of_zero_is_refused():
    hidden, head, token_ids = inputs()
    with pytest.raises(ValueError, match=r"use 1\.0"):
        token_logprobs(hidden, head, token_ids, temperature=0.0)
    with pytest.raises(ValueError, match=r"use 1\.0"):
        full_logprobs(hidden, head, temperature=-1.0)


@pytest.mark.parametrize("k", [0, V + 1])
def test_k_lies_within_the_vocabulary(k: int):
    hidden, head, _ = inputs()
    with pytest.raises(ValueError, match=f"1 <= k <= {V}"):
        topk_logprobs(hidden, head, k=k)

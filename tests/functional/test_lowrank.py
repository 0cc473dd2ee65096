"""Changes B A: sums are exact, reductions are the nearest, rules act on the changes themselves."""

import pytest
import torch

from copd.functional import merge_entries, nearest_of_rank, sum_changes, ties


def random_state(seed: int, rank: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "q.lora_A": torch.randn(rank, 8, generator=generator),
        "q.lora_B": torch.randn(6, rank, generator=generator),
        "down.lora_A": torch.randn(rank, 5, generator=generator),
        "down.lora_B": torch.randn(9, rank, generator=generator),
    }


def change(state, path: str) -> torch.Tensor:
    return state[f"{path}.lora_B"] @ state[f"{path}.lora_A"]


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.0), (0.2, 0.3, 0.5), (1.0, 1.0, -2.0)])
def test_a_sum_of_changes_is_the_sum_of_products_and_not_the_product_of_sums(weights):
    states = [random_state(seed, rank=seed + 1) for seed in range(3)]
    summed = sum_changes(states, weights)
    for path in ("q", "down"):
        changes = torch.stack([change(state, path) for state in states])
        expected = torch.tensordot(torch.tensor(weights), changes, dims=1)
        assert torch.allclose(change(summed, path), expected, atol=1e-5)
    assert len(summed["q.lora_A"]) == sum(n + 1 for n, w in enumerate(weights) if w)
    same = [random_state(seed) for seed in range(3)]
    separately = {
        name: sum(w * s[name] for w, s in zip(weights, same, strict=True)) for name in same[0]
    }
    assert not torch.allclose(change(sum_changes(same, weights), "q"), change(separately, "q"))


def test_by_hand():
    """[1; 2] [3 4] with weight 1/2 and [0; 1] [1 0] with weight 2."""
    states = [
        {"w.lora_B": torch.tensor([[1.0], [2.0]]), "w.lora_A": torch.tensor([[3.0, 4.0]])},
        {"w.lora_B": torch.tensor([[0.0], [1.0]]), "w.lora_A": torch.tensor([[1.0, 0.0]])},
    ]
    assert change(sum_changes(states, [0.5, 2.0]), "w").tolist() == [[1.5, 2.0], [5.0, 4.0]]


def test_all_weights_zero_change_nothing():
    summed = sum_changes([random_state(0), random_state(1)], [0.0, 0.0])
    assert change(summed, "q").abs().max() == 0


def test_a_reduction_is_the_truncated_singular_value_decomposition():
    state = sum_changes([random_state(0), random_state(1)], [1.0, 1.0])
    for path in ("q", "down"):
        left, values, right = torch.linalg.svd(change(state, path), full_matrices=False)
        for rank in (1, 2, 4):
            reduced = nearest_of_rank(state, rank)
            assert len(reduced[f"{path}.lora_A"]) == rank
            expected = left[:, :rank] * values[:rank] @ right[:rank]
            assert torch.allclose(change(reduced, path), expected, atol=1e-4)


def test_a_rank_that_is_not_too_high_stays_bit_for_bit():
    state = random_state(0)
    assert all(torch.equal(nearest_of_rank(state, 3)[name], state[name]) for name in state)


def test_a_rule_sees_whole_changes_and_its_result_is_kept_exactly():
    states = [random_state(seed) for seed in range(3)]

    def rule(number, changes):
        zero = {"w": torch.zeros_like(changes[0])}
        return ties(zero, [{"w": c} for c in changes], density=0.5)["w"]

    merged = merge_entries(states, rule)
    for path in ("q", "down"):
        assert torch.equal(change(merged, path), rule(0, [change(s, path) for s in states]))
        rows, columns = change(states[0], path).shape
        assert len(merged[f"{path}.lora_A"]) == min(rows, columns)


def test_adapters_of_other_matrices_do_not_merge():
    other = {name.replace("down", "up"): tensor for name, tensor in random_state(1).items()}
    with pytest.raises(ValueError, match=r"the same model\.lora\.target_modules"):
        sum_changes([random_state(0), other], [0.5, 0.5])

"""Merging state dicts: identity on copies, hand-computed TIES and DARE, exact dtypes, refusals."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from copd.functional import (
    average,
    choose_weights,
    dare,
    simplex_grid,
    task_arithmetic,
    ties,
)

State = dict[str, Tensor]


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.randn(7, 5, generator=generator).to(dtype),
        "norm.bias": torch.randn(5, generator=generator).to(dtype),
        "scale": torch.randn((), generator=generator).to(dtype),
        "position_ids": torch.arange(7),
    }


def single(*values: float) -> State:
    return {"w": torch.tensor(values)}


def assert_same(got: State, expected: State) -> None:
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor), name


Merge = Callable[[State, Sequence[State]], State]
METHODS: list[Merge] = [
    lambda base, states: average(states),
    lambda base, states: average(states, (0.5, 0.2, 0.3)),
    lambda base, states: task_arithmetic(base, states, scale=0.7),
    lambda base, states: ties(base, states, density=0.3),
    lambda base, states: dare(base, states, density=0.3, seed=0),
    lambda base, states: dare(base, states, density=0.3, seed=0, then="ties"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_merging_copies_is_the_identity(method: Merge, dtype: torch.dtype):
    state = random_state(0, dtype)
    assert_same(method(state, [state, dict(state), dict(state)]), state)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_alone_and_never_shared(method: Merge):
    base, states = random_state(9), [random_state(seed) for seed in range(3)]
    merged = method(base, states)
    for tensor in merged.values():
        tensor.zero_()
    assert_same(base, random_state(9))
    for seed, state in enumerate(states):
        assert_same(state, random_state(seed))


def test_average_by_hand():
    states = [single(1.0, 2.0), single(3.0, -2.0)]
    assert average(states)["w"].tolist() == [2.0, 0.0]
    assert average(states, (0.25, 0.75))["w"].tolist() == [2.5, -1.0]
    assert average(states, (1.0, 0.0))["w"].tolist() == [1.0, 2.0]


def test_average_does_not_depend_on_the_order():
    states = [random_state(seed) for seed in range(3)]
    expected = average(states, (0.2, 0.3, 0.5))
    for order in itertools.permutations(range(3)):
        got = average([states[i] for i in order], [(0.2, 0.3, 0.5)[i] for i in order])
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("chosen", range(3))
def test_a_weight_of_one_returns_that_state(chosen: int):
    states = [random_state(seed) for seed in range(3)]
    weights = [float(position == chosen) for position in range(3)]
    assert_same(average(states, weights), states[chosen])


def test_bfloat16_is_rounded_once_at_the_end():
    """257 is no bfloat16, nor is the difference 1.0078125 - 256: both must be met in float32."""

    def state(value: float) -> State:
        return {"w": torch.tensor([value], dtype=torch.bfloat16)}

    assert average([state(256.0), state(258.0), state(258.0)])["w"].item() == 258.0  # of 257.33
    moved = task_arithmetic(state(256.0), [state(1.0078125)])
    assert moved["w"].item() == 1.0078125


def test_small_updates_survive_in_float32():
    base = torch.full((3,), 1.0)
    merged = average([{"w": base}, {"w": base + 2e-7}])
    assert bool((merged["w"] > 1.0).all())


def test_task_arithmetic_by_hand():
    base, states = single(1.0, 1.0), [single(2.0, 1.0), single(1.0, -1.0)]
    assert task_arithmetic(base, states, scale=2.0)["w"].tolist() == [2.0, -1.0]
    assert task_arithmetic(base, states, weights=(1.0, -0.5))["w"].tolist() == [2.0, 2.0]


def test_task_arithmetic_at_scale_one_is_the_average():
    base, states = random_state(9), [random_state(seed) for seed in range(3)]
    torch.testing.assert_close(task_arithmetic(base, states), average(states))


def test_ties_by_hand():
    """Top 3 of 5 stay: [3, -1, 0, 2, 0] and [-1, -2, 0, 4, 0]; the signs elected are + - . + ."""
    base = single(10.0, 10.0, 10.0, 10.0, 10.0)
    states = [single(13.0, 9.0, 10.5, 12.0, 10.25), single(9.0, 8.0, 10.5, 14.0, 9.75)]
    assert ties(base, states, density=0.6)["w"].tolist() == [13.0, 8.5, 10.0, 13.0, 10.0]
    half = ties(base, states, density=0.6, scale=0.5)["w"].tolist()
    assert half == [11.5, 9.25, 10.0, 11.5, 10.0]


def test_ties_trims_each_tensor_by_its_own_magnitudes():
    base = {"large": torch.zeros(4), "small": torch.zeros(4)}
    state = {"large": torch.tensor([4.0, 3, 2, 1]), "small": torch.tensor([0.4, 0.3, 0.2, 0.1])}
    merged = ties(base, [state], density=0.5)
    assert merged["large"].tolist() == [4.0, 3.0, 0.0, 0.0]
    assert merged["small"].tolist() == pytest.approx([0.4, 0.3, 0.0, 0.0])


def test_ties_elects_by_magnitude_not_by_count_and_leaves_exact_ties_alone():
    base = single(0.0, 0.0)
    states = [single(5.0, 2.0), single(-2.0, -2.0), single(-2.0, 0.0)]
    assert ties(base, states, density=1.0)["w"].tolist() == [5.0, 0.0]


def test_ties_keeps_at_least_the_largest_change():
    assert ties(single(0.0, 0.0), [single(1.0, 3.0)], density=0.01)["w"].tolist() == [0.0, 3.0]


def test_dare_drops_and_rescales_exactly():
    base = {"w": torch.full((4000,), 2.0)}
    merged = dare(base, [{"w": torch.full((4000,), 3.0)}], density=0.25, seed=3)["w"]
    assert set(merged.tolist()) == {2.0, 6.0}  # dropped, or 1 / 0.25 added
    assert float((merged == 6.0).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_dare_draws_for_each_state_apart():
    """Changes 1 and 8, half dropped: the mean of none, one, the other or both."""
    base = {"w": torch.zeros(4000)}
    states = [{"w": torch.full((4000,), value)} for value in (1.0, 8.0)]
    merged = dare(base, states, density=0.5, seed=0)["w"]
    shares = {value: float((merged == value).float().mean()) for value in (0.0, 1.0, 8.0, 9.0)}
    assert shares == {value: pytest.approx(0.25, abs=0.03) for value in (0.0, 1.0, 8.0, 9.0)}


def test_dare_then_ties_elects_among_the_survivors():
    base = {"w": torch.zeros(4000)}
    states = [{"w": torch.full((4000,), value)} for value in (1.0, 3.0, -2.0)]
    merged = dare(base, states, density=0.5, seed=0, then="ties")["w"]
    assert set(merged.tolist()) == {0.0, 2.0, 6.0, 4.0, -4.0}
    two = dare(base, states[:2], density=0.5, scale=0.5, seed=0, then="ties")["w"]
    assert set(two.tolist()) == {0.0, 1.0, 3.0, 2.0}


def test_dare_is_unbiased_over_seeds():
    base, states = single(0.0, 1.0, -1.0), [single(1.0, 3.0, -2.0), single(2.0, 1.0, 0.0)]
    draws = [dare(base, states, density=0.5, seed=seed)["w"] for seed in range(2000)]
    torch.testing.assert_close(torch.stack(draws).mean(0), average(states)["w"], atol=0.1, rtol=0)


def test_dare_depends_on_the_seed_and_nothing_else():
    base, states = random_state(9), [random_state(seed) for seed in range(2)]
    first = dare(base, states, density=0.5, seed=7)
    torch.manual_seed(123)
    assert_same(dare(base, states, density=0.5, seed=7), first)
    shuffled = [{name: state[name] for name in reversed(state)} for state in (base, *states)]
    again = dare(shuffled[0], shuffled[1:], density=0.5, seed=7)
    assert_same({name: again[name] for name in base}, first)
    other = dare(base, states, density=0.5, seed=8)
    assert not torch.equal(other["embed.weight"], first["embed.weight"])


def test_dare_at_full_density_is_task_arithmetic():
    base, states = random_state(9), [random_state(seed) for seed in range(2)]
    assert_same(dare(base, states, density=1.0, seed=0), task_arithmetic(base, states))


@pytest.mark.parametrize("method", METHODS)
def test_mismatches_name_the_tensor(method: Merge):
    base, states = random_state(9), [random_state(seed) for seed in range(3)]
    without = {name: tensor for name, tensor in states[1].items() if name != "norm.bias"}
    with pytest.raises(ValueError, match=r"'norm\.bias' is missing from state 1"):
        method(base, [states[0], without, states[2]])
    with pytest.raises(ValueError, match=r"'extra' is missing from the base"):
        method(base, [states[0], {**states[1], "extra": torch.ones(1)}, states[2]])
    with pytest.raises(ValueError, match=r"'scale' is \(2,\).*state 2"):
        method(base, [*states[:2], {**states[2], "scale": torch.ones(2)}])
    with pytest.raises(ValueError, match=r"'scale'.*bfloat16.*Cast"):
        method(base, [*states[:2], {**states[2], "scale": torch.tensor(1.0).bfloat16()}])
    with pytest.raises(ValueError, match=r"'position_ids' of torch\.int64.*make it equal"):
        method(base, [*states[:2], {**states[2], "position_ids": torch.arange(7) + 1}])


def test_weights_are_checked():
    states = [single(1.0), single(2.0)]
    with pytest.raises(ValueError, match="Divide them by their sum"):
        average(states, (0.5, 0.6))
    with pytest.raises(ValueError, match="as many weights as states"):
        task_arithmetic(states[0], states, weights=(1.0,))
    with pytest.raises(ValueError, match="expected at least one"):
        average([])


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_density_is_checked(density: float):
    with pytest.raises(ValueError, match="or 1 to keep all"):
        ties(single(1.0), [single(2.0)], density=density)
    with pytest.raises(ValueError, match="or 1 to keep all"):
        dare(single(1.0), [single(2.0)], density=density, seed=0)


def test_simplex_grid_by_hand():
    assert simplex_grid(2, 2) == [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    assert simplex_grid(1, 5) == [(1.0,)]
    assert set(simplex_grid(3, 1)) == set(itertools.permutations((1.0, 0.0, 0.0)))


def test_simplex_grid_is_complete():
    grid = simplex_grid(3, 10)
    assert len(set(grid)) == len(grid) == 66  # 12 choose 2
    assert all(sum(weights) == pytest.approx(1.0) and min(weights) >= 0 for weights in grid)
    assert (0.3, 0.3, 0.4) in grid


def test_simplex_grid_needs_something_to_divide():
    with pytest.raises(ValueError, match="Raise both to 1 or more"):
        simplex_grid(0, 3)


def test_the_best_score_wins_and_ties_go_to_the_most_uniform():
    grid = simplex_grid(3, 3)
    assert choose_weights(grid, lambda weights: weights[1]) == (0.0, 1.0, 0.0)
    assert choose_weights(grid, lambda weights: 1.0) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert choose_weights(grid, lambda weights: -abs(weights[0] - 1 / 3)) == pytest.approx(
        (1 / 3, 1 / 3, 1 / 3)
    )
    assert choose_weights(simplex_grid(2, 3), lambda weights: 0.0) == (1 / 3, 2 / 3)


def test_choosing_scores_every_candidate_once():
    scored: list[tuple[float, ...]] = []
    choose_weights(simplex_grid(2, 4), lambda weights: scored.append(weights) or weights[0])
    assert scored == simplex_grid(2, 4)


def test_choosing_needs_candidates_and_numbers():
    with pytest.raises(ValueError, match="at least one candidate"):
        choose_weights([], lambda weights: 0.0)
    with pytest.raises(ValueError, match="check what the score measures"):
        choose_weights([(1.0,)], lambda weights: float("nan"))

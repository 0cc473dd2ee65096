"""A branch over two processes returns and learns the same as in one."""

import os
import signal
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from copd.branch import Branch
from copd.branch.learner import BatchStatistics
from copd.branch.ranks import SINGLE_RANK, Ranks
from copd.config import Config, RayEngineConfig
from copd.engine import BranchLost, LocalEngine
from copd.run import commands
from copd.types import (
    EvaluationRequest,
    ProblemId,
    RolloutRequest,
    ScoreRequest,
    TrainingBatch,
    UpdateRequest,
)

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

SETTINGS = {
    "seed": 3,
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {m: {"type": "digits", "modality": m, "num_train": 50} for m in ("text", "image")},
    "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1},
    "rollout": {"num_prompts": 3, "group_size": 2, "max_completion_tokens": 8},
    "optimizer": {"learning_rate": 1e-3, "max_grad_norm": 1e9},
    "evaluation": {"num_problems": 3, "num_samples": 2, "base": False, "branches": False},
    "checkpoint": {"every": 1, "keep": 9},
}
TWO = {"type": "ray", "num_cpus": 0, "ranks_per_branch": 2}


def make_config(root: Path, **sections) -> Config:
    return Config.model_validate({**SETTINGS, "output_dir": root, **sections})


@pytest.fixture(scope="module")
def engines(cluster, tmp_path_factory) -> Iterator[list[Any]]:
    """A local engine, and one with two processes per branch, each with the branch `a`."""
    from copd.engine.ray import RayEngine

    root = tmp_path_factory.mktemp("wide")
    config = make_config(root, engine=TWO)
    assert isinstance(config.engine, RayEngineConfig)
    one = LocalEngine(make_config(root, engine={"type": "local", "num_threads": 1}))
    two = RayEngine(config, config.engine)
    for engine in (one, two):
        engine.spawn("a", "tiny")
    yield [one, two]
    two.close()


@pytest.fixture
def fresh(engines, tmp_path) -> list[Any]:
    """The engines with the weights of the base and no updates."""
    base = LocalEngine(make_config(tmp_path))
    base.spawn("a", "tiny")
    weights = base.call(Branch.weights, {"a": None})["a"]
    for engine in engines:
        engine.call(Branch.set_weights, {"a": weights})
    return engines


def both(engines, method, value: Any) -> list[Any]:
    return [engine.call(method, {"a": value})["a"] for engine in engines]


def request(domain: str, count: int, seed: int = 5) -> RolloutRequest:
    problems = tuple(ProblemId(domain, "train", i) for i in range(count))
    return RolloutRequest(f"rlvr/{domain}", problems, 1.0, seed, "step 1")


def require_close(one: Any, other: Any) -> None:
    """Compare field by field: floats as closely as float32 sums allow, everything else exactly."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray) and a.dtype == np.float32:
            assert a.shape == b.shape, field.name
            assert np.allclose(a, b, rtol=1e-4, atol=1e-5), field.name
        else:
            assert np.array_equal(a, b), field.name


def require_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Compare tensors to 1e-5 of their norms."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        gap = (other[name].double() - tensor.double()).norm()
        assert gap <= 1e-5 * tensor.double().norm(), name


def saved(engine: Any, folder: Path) -> list[dict[str, torch.Tensor]]:
    engine.call(Branch.save, {"a": folder})
    return [load_file(folder / "a" / f"{x}.safetensors") for x in ("model", "optimizer")]


def score_request(batch) -> ScoreRequest:
    probes = np.arange(0, len(batch.token_ids), 3, dtype=np.int32)
    return ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, 16)


def update_request(batches, outputs) -> UpdateRequest:
    """Train on rewards that differ within groups, and on a teacher that is not the student."""
    first, *others = batches
    rewards = np.arange(first.rewards.size, dtype=np.float32).reshape(first.rewards.shape)
    moved = [o.logprobs + np.sin(np.arange(len(o.logprobs))) for o in outputs]
    training_batches = [TrainingBatch("text", replace(first, rewards=rewards))]
    for i, (batch, teacher) in enumerate(zip(others, outputs[1:], strict=True)):
        teacher = replace(teacher, logprobs=moved[i + 1].astype(np.float32))
        training_batches.append(TrainingBatch("image", replace(batch, action=f"opd/{i}"), teacher))
    return UpdateRequest(tuple(training_batches), "step 1")


def test_two_ranks_sample_score_and_learn_as_one_process(fresh, tmp_path):
    """Three problems over two ranks; of a single problem one rank has none, nor its pixels."""
    requests = [request("text", 3), request("image", 3), request("image", 1, seed=6)]
    batches, on_two = both(fresh, Branch.sample, requests)
    for one, two in zip(batches, on_two, strict=True):
        require_close(one, two)
    scores, on_two = both(fresh, Branch.score, [score_request(batch) for batch in batches])
    for one, two in zip(scores, on_two, strict=True):
        require_close(one, two)
    one, two = both(fresh, Branch.update, update_request(batches, scores))
    assert one.keys() == two.keys()
    assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    assert one["update/grad_norm"] > 0
    # after one update without clipping the first moment is a tenth of the gradient
    states = [saved(e, tmp_path / str(i)) for i, e in enumerate(fresh)]
    for one, two in zip(*states, strict=True):
        require_near(one, two)


def test_a_parameter_without_a_gradient_on_any_rank_stays_as_it_is(fresh, tmp_path):
    """Text alone does not reach the vision tower: no moments and no weight decay."""
    [batch] = fresh[0].call(Branch.sample, {"a": [request("text", 3)]})["a"]
    scores = fresh[0].call(Branch.score, {"a": [score_request(batch)]})["a"]
    both(fresh, Branch.update, update_request([batch], scores))
    one, two = (saved(e, tmp_path / str(i))[1] for i, e in enumerate(fresh))
    assert one.keys() == two.keys()
    assert not any("visual" in name for name in two)


def test_a_branch_is_restored_with_another_number_of_ranks(fresh, tmp_path):
    batches = fresh[0].call(Branch.sample, {"a": [request("text", 3)]})["a"]
    scores = fresh[0].call(Branch.score, {"a": [score_request(batch) for batch in batches]})["a"]
    training = update_request(batches, scores)
    one, two = fresh
    two.call(Branch.update, {"a": training})
    before = saved(two, tmp_path / "two")
    one.call(Branch.restore, {"a": tmp_path / "two"})
    for mine, its in zip(saved(one, tmp_path / "one"), before, strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in its)
    two.call(Branch.update, {"a": training})
    two.call(Branch.restore, {"a": tmp_path / "one"})
    assert both(fresh, Branch.update, training)[0]["update/grad_norm"] > 0
    for mine, its in zip(saved(one, tmp_path / "x"), saved(two, tmp_path / "y"), strict=True):
        require_near(mine, its)


def test_other_methods_return_the_same_on_two_ranks(fresh, tmp_path):
    """Evaluations, probe rollouts, weights, and exported folders with the same bits."""
    evaluation = EvaluationRequest("text", "test", 3, 2, 0.7, 8, seed=1)
    for shard in (None, (2, 3)):
        require_close(*both(fresh, Branch.evaluate, replace(evaluation, shard=shard)))
    [one], [two] = both(fresh, Branch.probe, [request("image", 2)])
    require_close(one, two)
    one, two = both(fresh, Branch.weights, None)
    assert all(torch.equal(one[name], two[name]) for name in one)
    folders = tmp_path / "one", tmp_path / "two"
    for engine, folder in zip(fresh, folders, strict=True):
        engine.call(Branch.export, {"a": folder})
    files = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert files[0] == files[1] and "model.safetensors" in files[0]


def test_an_error_of_one_rank_is_raised_by_the_branch(fresh):
    """The other rank does not wait for it, and both can continue."""

    def failing(branch: Branch, rank: int) -> object:
        def refuse(names: object, groups: object) -> None:
            raise ValueError(f"rank {branch._ranks.rank} cannot.")

        cache: Any = branch._prompt_cache
        if branch._ranks.rank == rank:
            cache.verify_groups = refuse
        try:
            return Branch.sample(branch, [sampling])
        finally:
            vars(cache).pop("verify_groups", None)

    sampling = request("text", 3)
    for rank in (0, 1):
        with pytest.raises(ValueError, match=f"rank {rank} cannot"):
            fresh[1].call(failing, {"a": rank})
    [one], [two] = both(fresh, Branch.sample, [sampling])
    require_close(one, two)


@pytest.mark.slow
def test_a_branch_is_lost_when_one_of_its_ranks_dies(fresh):
    one, two = fresh

    def deadly(branch: Branch, value: UpdateRequest) -> Any:
        if branch._ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return Branch.update(branch, value)

    batches = one.call(Branch.sample, {"a": [request("text", 3)]})["a"]
    training = update_request(
        batches, one.call(Branch.score, {"a": [score_request(b) for b in batches]})["a"]
    )
    with pytest.raises(BranchLost, match=r"branch 'a' \(rank 1, process \d+ on .* in deadly"):
        two.call(deadly, {"a": training})
    two.clear()
    two.spawn("a", "tiny")
    [mine], [its] = both(fresh, Branch.sample, [request("text", 3)])
    require_close(mine, its)


@pytest.mark.slow
def test_a_run_has_the_results_of_one_process(engines, tmp_path):
    """One round on two ranks, with the merge."""
    local = {"type": "local", "num_threads": 1}
    commands.train(make_config(tmp_path / "one", engine=local))
    commands.train(make_config(tmp_path / "two", engine=TWO))
    root = tmp_path / "one"
    names = [str(path.relative_to(root)) for path in root.rglob("*.safetensors")]
    assert "final/model.safetensors" in names and len(names) == 9
    for name in names:
        if "optimizer" not in name:
            require_near(load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name))


def test_shards_are_consecutive_and_cover_everything():
    for count in range(9):
        shards = [Ranks(rank, 4).shard(count) for rank in range(4)]
        assert [i for shard in shards for i in range(count)[shard]] == list(range(count))
        sizes = [shard.stop - shard.start for shard in shards]
        assert max(sizes) - min(sizes) <= 1
    assert (
        SINGLE_RANK.shard(3) == slice(0, 3)
        and SINGLE_RANK.is_first
        and SINGLE_RANK.all_ranks(lambda: 7) == [7]
    )


def test_statistics_of_shards_join_to_those_of_the_batch():
    tensors = torch.arange(3.0).split(1)
    shards = [
        BatchStatistics(0.5, [tensors[0]], num_clipped=1.0),
        BatchStatistics(0.25, [*tensors[1:]]),
    ]
    assert BatchStatistics.join(shards) == BatchStatistics(0.75, [*tensors], num_clipped=1.0)


@pytest.mark.parametrize(
    ("sections", "remedy"),
    [
        ({"model": {"path": "tiny", "branches": "lora"}}, "cannot share model.branches"),
        ({"optimizer": {"type": "adamw_8bit"}}, "cannot share optimizer.type"),
        ({"monitor": {"gradient_cosine": True}}, "cannot share monitor.gradient_cosine"),
        ({"rollout": {"num_prompts": 1}}, "Raise the first or lower the second"),
        ({"engine": {**TWO, "num_gpus": 0.5}}, "Set it to 1, or to 0"),
        ({"engine": {"type": "local", "ranks_per_branch": 2}}, "ranks_per_branch"),
    ],
)
def test_settings_that_ranks_cannot_share_are_refused(tmp_path, sections, remedy):
    with pytest.raises(ValueError, match=remedy):
        make_config(tmp_path, **{"engine": TWO, **sections})

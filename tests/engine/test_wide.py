"""A branch over two processes: what it says and learns is what it does in one."""

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
from copd.branch.learner import BatchRecord
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

pytestmark = pytest.mark.ray

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
def engines(tmp_path_factory) -> Iterator[list[Any]]:
    """One process, and two, with branch `a`."""
    ray = pytest.importorskip("ray")
    from copd.engine.ray import RayEngine, join

    assert join(RayEngineConfig())
    root = tmp_path_factory.mktemp("wide")
    config = make_config(root, engine=TWO)
    assert isinstance(config.engine, RayEngineConfig)
    one = LocalEngine(make_config(root, engine={"type": "local", "num_threads": 1}))
    two = RayEngine(config, config.engine)
    for engine in (one, two):
        engine.spawn("a", "tiny")
    yield [one, two]
    two.close()
    ray.shutdown()


@pytest.fixture
def fresh(engines, tmp_path) -> list[Any]:
    """The same engines with the weights of the base and no updates."""
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
    """Field by field: integers and words equal, other numbers as close as float32 sums are."""
    for field in fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray) and a.dtype == np.float32:
            assert a.shape == b.shape, field.name
            assert np.allclose(a, b, rtol=1e-4, atol=1e-5), field.name
        else:
            assert np.array_equal(a, b), field.name


def require_near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """1e-5 of every tensor's norm."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        gap = (other[name].double() - tensor.double()).norm()
        assert gap <= 1e-5 * tensor.double().norm(), name


def saved(engine: Any, folder: Path) -> list[dict[str, torch.Tensor]]:
    engine.call(Branch.save, {"a": folder})
    return [load_file(folder / "a" / f"{x}.safetensors") for x in ("model", "optimizer")]


def ask(batch) -> ScoreRequest:
    probes = np.arange(0, len(batch.token_ids), 3, dtype=np.int32)
    return ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, 16)


def teach(batches, scores) -> UpdateRequest:
    """Rewards that differ within a group, and a teacher whose word is not the student's."""
    first, *others = batches
    rewards = np.arange(first.rewards.size, dtype=np.float32).reshape(first.rewards.shape)
    moved = [replace(s, logprobs=s.logprobs + np.sin(np.arange(len(s.logprobs)))) for s in scores]
    moved = [replace(s, logprobs=s.logprobs.astype(np.float32)) for s in moved]
    lessons = [TrainingBatch("text", replace(first, rewards=rewards))]
    for i, (batch, told) in enumerate(zip(others, moved[1:], strict=True)):
        lessons.append(TrainingBatch("image", replace(batch, action=f"opd/{i}"), told))
    return UpdateRequest(tuple(lessons), "step 1")


def test_two_ranks_sample_score_and_learn_as_one_process(fresh, tmp_path):
    """Three problems over two ranks; of one problem alone a rank has nothing, nor of its pixels."""
    asked = [request("text", 3), request("image", 3), request("image", 1, seed=6)]
    batches, on_two = both(fresh, Branch.sample, asked)
    for one, two in zip(batches, on_two, strict=True):
        require_close(one, two)
    scores, on_two = both(fresh, Branch.score, [ask(batch) for batch in batches])
    for one, two in zip(scores, on_two, strict=True):
        require_close(one, two)
    one, two = both(fresh, Branch.update, teach(batches, scores))
    assert one.keys() == two.keys()
    assert one == pytest.approx(two, rel=1e-4, abs=1e-5)
    assert one["update/grad_norm"] > 0
    # after one update without clipping the first moment is a tenth of the gradient
    states = [saved(e, tmp_path / str(i)) for i, e in enumerate(fresh)]
    for one, two in zip(*states, strict=True):
        require_near(one, two)


def test_a_parameter_that_no_rank_touched_stays_as_it_is(fresh, tmp_path):
    """Text alone does not reach the tower: no moments, and no weight decay."""
    [batch] = fresh[0].call(Branch.sample, {"a": [request("text", 3)]})["a"]
    scores = fresh[0].call(Branch.score, {"a": [ask(batch)]})["a"]
    both(fresh, Branch.update, teach([batch], scores))
    one, two = (saved(e, tmp_path / str(i))[1] for i, e in enumerate(fresh))
    assert one.keys() == two.keys()
    assert not any("visual" in name for name in two)


def test_a_branch_goes_on_with_another_number_of_ranks(fresh, tmp_path):
    batches = fresh[0].call(Branch.sample, {"a": [request("text", 3)]})["a"]
    scores = fresh[0].call(Branch.score, {"a": [ask(batch) for batch in batches]})["a"]
    lesson = teach(batches, scores)
    one, two = fresh
    two.call(Branch.update, {"a": lesson})
    begun = saved(two, tmp_path / "two")
    one.call(Branch.restore, {"a": tmp_path / "two"})
    for mine, its in zip(saved(one, tmp_path / "one"), begun, strict=True):
        assert mine.keys() == its.keys()
        assert all(torch.equal(mine[name], its[name]) for name in its)
    two.call(Branch.update, {"a": lesson})
    two.call(Branch.restore, {"a": tmp_path / "one"})
    assert both(fresh, Branch.update, lesson)[0]["update/grad_norm"] > 0
    for mine, its in zip(saved(one, tmp_path / "x"), saved(two, tmp_path / "y"), strict=True):
        require_near(mine, its)


def test_what_a_branch_tells_is_told_once(fresh, tmp_path):
    """Evaluations, portraits, weights, and folders with the same bits."""
    wanted = EvaluationRequest("text", "test", 3, 2, 0.7, 8, seed=1)
    for part in (None, (2, 3)):
        require_close(*both(fresh, Branch.evaluate, replace(wanted, shard=part)))
    [one], [two] = both(fresh, Branch.probe, [request("image", 2)])
    require_close(one, two)
    one, two = both(fresh, Branch.weights, None)
    assert all(torch.equal(one[name], two[name]) for name in one)
    folders = tmp_path / "one", tmp_path / "two"
    for engine, folder in zip(fresh, folders, strict=True):
        engine.call(Branch.export, {"a": folder})
    files = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert files[0] == files[1] and "model.safetensors" in files[0]


def test_what_one_rank_raises_the_branch_raises(fresh):
    """The other does not wait for it, and both can go on."""

    def spoiled(branch: Branch, rank: int) -> object:
        def refuse(names: object, groups: object) -> None:
            raise ValueError(f"rank {branch._ranks.rank} cannot.")

        book: Any = branch._book
        if branch._ranks.rank == rank:
            book.verify_groups = refuse
        try:
            return Branch.sample(branch, [asked])
        finally:
            vars(book).pop("verify_groups", None)

    asked = request("text", 3)
    for rank in (0, 1):
        with pytest.raises(ValueError, match=f"rank {rank} cannot"):
            fresh[1].call(spoiled, {"a": rank})
    [one], [two] = both(fresh, Branch.sample, [asked])
    require_close(one, two)


@pytest.mark.slow
def test_a_rank_that_dies_is_the_branch_that_is_lost(fresh):
    one, two = fresh

    def deadly(branch: Branch, value: UpdateRequest) -> Any:
        if branch._ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return Branch.update(branch, value)

    batches = one.call(Branch.sample, {"a": [request("text", 3)]})["a"]
    lesson = teach(batches, one.call(Branch.score, {"a": [ask(b) for b in batches]})["a"])
    with pytest.raises(BranchLost, match=r"branch 'a' \(rank 1, process \d+ on .* in deadly"):
        two.call(deadly, {"a": lesson})
    two.clear()
    two.spawn("a", "tiny")
    [mine], [its] = both(fresh, Branch.sample, [request("text", 3)])
    require_close(mine, its)


@pytest.mark.slow
def test_a_run_ends_where_one_process_does(engines, tmp_path):
    """A round on two ranks, with its merge."""
    local = {"type": "local", "num_threads": 1}
    commands.train(make_config(tmp_path / "one", engine=local))
    commands.train(make_config(tmp_path / "two", engine=TWO))
    root = tmp_path / "one"
    names = [str(path.relative_to(root)) for path in root.rglob("*.safetensors")]
    assert "final/model.safetensors" in names and len(names) == 9
    for name in names:
        if "optimizer" not in name:
            require_near(load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name))


def test_pieces_are_runs_that_cover_everything():
    for count in range(9):
        pieces = [Ranks(rank, 4).shard(count) for rank in range(4)]
        assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
        sizes = [piece.stop - piece.start for piece in pieces]
        assert max(sizes) - min(sizes) <= 1
    assert (
        SINGLE_RANK.shard(3) == slice(0, 3)
        and SINGLE_RANK.is_first
        and SINGLE_RANK.all_ranks(lambda: 7) == [7]
    )


def test_records_of_pieces_are_one_lessons():
    tensors = torch.arange(3.0).split(1)
    pieces = [BatchRecord(0.5, [tensors[0]], clipped=1.0), BatchRecord(0.25, [*tensors[1:]])]
    assert BatchRecord.join(pieces) == BatchRecord(0.75, [*tensors], clipped=1.0)


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
def test_what_ranks_cannot_share_is_refused(tmp_path, sections, remedy):
    with pytest.raises(ValueError, match=remedy):
        make_config(tmp_path, **{"engine": TWO, **sections})

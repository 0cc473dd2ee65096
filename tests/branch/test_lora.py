"""Branches with adapters on one base: what moves, what is stored, and what K of them cost."""

import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from copd.branch import Branch
from copd.config import Config
from copd.engine import LocalEngine
from copd.recipes import build_plan
from copd.run.step import Position, take_step
from copd.types import ProblemId, RolloutRequest, ScoreRequest, TrainingBatch, UpdateRequest
from tests.conftest import READING_TEMPLATE, character_tokenizer

LORA = {"path": "tiny", "device": "cpu", "branches": "lora", "lora": {"rank": 4}}


@pytest.fixture
def engine(make_engine) -> LocalEngine:
    """Two trained branches, and the base."""
    engine = make_engine("a", "b", model=LORA)
    engine.spawn("theta_0", "tiny", frozen=True)
    return engine


def batches(engine: LocalEngine, name: str, *domains: str):
    requests = [
        RolloutRequest(d, tuple(ProblemId(d, "train", i) for i in range(4)), 1.0, 5, "a test")
        for d in domains
    ]
    return engine.call(Branch.sample, {name: requests})[name]


def scored(engine: LocalEngine, teacher: str, batch):
    question = ScoreRequest(batch.problems, batch.token_ids, batch.lengths, batch.lengths[:3], 4)
    return engine.call(Branch.score, {teacher: [question]})[teacher][0]


def learn(engine: LocalEngine, student: str, teacher: str) -> None:
    native, cross = batches(engine, student, "text", "image")
    batch = TrainingBatch("image", cross, scored(engine, teacher, cross))
    request = UpdateRequest((TrainingBatch("text", native), batch), "a test")
    engine.call(Branch.update, {student: request})


def weights(engine: LocalEngine, name: str) -> dict[str, torch.Tensor]:
    return engine.call(Branch.weights, {name: None})[name]


def test_an_update_moves_the_branch_and_nothing_else(engine):
    learn(engine, "a", "theta_0")  # a's B is no longer 0: from now on its A moves, too
    before = weights(engine, "a"), weights(engine, "b")
    model = engine._branches["a"]._policy.model
    base = {n: p.detach().clone() for n, p in model.named_parameters() if ".lora_" not in n}
    learn(engine, "a", "b")
    moved = weights(engine, "a")
    assert all(not torch.equal(before[0][name], moved[name]) for name in moved)
    assert all(torch.equal(before[1][n], w) for n, w in weights(engine, "b").items())
    assert all(torch.equal(base[n], p) for n, p in model.named_parameters() if n in base)
    assert all(p.grad is None for p in model.parameters())


def test_teachers_are_the_base_and_then_what_they_have_learned(engine):
    [batch] = batches(engine, "a", "text")
    base = scored(engine, "theta_0", batch).logprobs
    assert (scored(engine, "b", batch).logprobs == base).all()
    learn(engine, "b", "theta_0")
    assert abs(scored(engine, "b", batch).logprobs - base).max() > 1e-4
    assert (scored(engine, "theta_0", batch).logprobs == base).all()
    assert (scored(engine, "a", batch).logprobs == base).all()


def test_all_branches_live_in_one_model(engine):
    models = {id(branch._policy.model) for branch in engine._branches.values()}
    assert len(models) == 1
    assert weights(engine, "theta_0") == {}
    engine.drop("theta_0")
    engine.drop("a")
    names = [name for name, _ in engine._branches["b"]._policy.model.named_parameters()]
    assert any("branch_b" in name for name in names)
    assert not any("branch_a" in name for name in names)


def test_a_checkpoint_is_the_adapter_and_its_optimizer(engine, make_engine, tmp_path):
    learn(engine, "a", "b")
    engine.call(Branch.save, {"a": tmp_path})
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert stored.keys() == weights(engine, "a").keys()
    assert all(name.endswith(("lora_A", "lora_B")) for name in stored)
    moments = load_file(tmp_path / "a" / "optimizer.safetensors")
    assert len(moments) == 1 + 2 * len(stored)

    again = make_engine("a", "b", model=LORA)
    again.call(Branch.restore, {"a": tmp_path})
    for one in (engine, again):
        learn(one, "a", "b")
    ours, theirs = weights(engine, "a"), weights(again, "a")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class PeakBytes(TorchDispatchMode):
    """The most bytes of tensors that were alive at once while it was entered."""

    def __init__(self, alive: list[torch.Tensor]) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bytes = self.peak = 0
        for tensor in alive:
            self._see(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is not None and not known[0].expired():
            return
        if known is not None:
            self._bytes -= known[1]
        self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._bytes += storage.nbytes()
        if self._bytes > self.peak:
            self._forget()
            self.peak = max(self.peak, self._bytes)

    def _forget(self) -> None:
        gone = [key for key, (storage, _) in self._storages.items() if storage.expired()]
        for key in gone:
            self._bytes -= self._storages.pop(key)[1]


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 26 M parameters: wide, as real models are beside the rank of an adapter."""
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=112,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=8,
        bos_token_id=None,
        pad_token_id=None,
        eos_token_id=98,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    character_tokenizer(READING_TEMPLATE).save_pretrained(folder)
    return folder


def test_three_branches_take_at_most_1_15_times_the_memory_of_one(
    wide_folder: Path, make_config: Callable[..., Config]
):
    """Mutual steps of three branches against RLVR steps of one; optimizer states exist by then."""
    peaks = {}
    for domains in (("t1",), ("t1", "t2", "t3")):
        recipe = {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1}
        config = make_config(
            model=LORA | {"path": str(wide_folder)},
            domains={name: {"type": "digits", "modality": "text"} for name in domains},
            recipe=recipe if len(domains) > 1 else {"type": "experts"} | {"steps": 2},
            rollout={"num_prompts": 2, "group_size": 2, "max_completion_tokens": 8},
        )
        engine, plan = LocalEngine(config), build_plan(config)
        for name in plan.branches:
            engine.spawn(name, str(wide_folder))
        model = engine._branches["t1"]._policy.model
        with PeakBytes([*model.parameters(), *model.buffers()]) as memory:
            for step in (1, 2):
                index, _ = plan.locate(step - 1)
                take_step(engine, config, Position(step, index, plan.stages[index]))
        peaks[len(domains)] = memory.peak
        engine.close()
    base = sum(p.nbytes for p in LlamaForCausalLM.from_pretrained(wide_folder).parameters())
    assert peaks[1] > 1.05 * base  # it does see more than the weights
    assert peaks[3] <= 1.15 * peaks[1]


def test_a_branch_that_is_gone_frees_its_adapter(make_engine):
    engine = make_engine("a", "b", model=LORA)
    parameter = weakref.ref(next(iter(engine._branches["a"]._policy.parameters().values())))
    engine.drop("a")
    assert parameter() is None

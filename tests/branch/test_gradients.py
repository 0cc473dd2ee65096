"""The gradients of an update's batches, apart: against autograd and against hand-made vectors."""

import math

import numpy as np
import pytest
import torch

from copd.branch import Branch
from copd.branch.gradients import Gradients
from copd.types import ProblemId, RolloutRequest, ScoreRequest, TrainingBatch, UpdateRequest
from tests.packing import flat

MEASURED = {"gradient_cosine": True}


def rollouts(engine, domain, count=4, action=None):
    problems = tuple(ProblemId(domain, "train", i) for i in range(count))
    wanted = RolloutRequest(action or f"rlvr/{domain}", problems, 1.0, 0, "step 1")
    [batch] = engine.call(Branch.sample, {"a": [wanted]})["a"]
    return batch


def batches(engine):
    """A native batch, a cross one, and one whose rewards are all equal."""
    generator = torch.Generator().manual_seed(7)
    teacher = {
        name: weights + 0.02 * torch.randn(weights.shape, generator=generator)
        for name, weights in engine.call(Branch.weights, {"b": None})["b"].items()
    }
    engine.call(Branch.set_weights, {"b": teacher})
    native = rollouts(engine, "text", count=6)
    cross = rollouts(engine, "image", action="opd/from_b/image")
    silent = rollouts(engine, "video")
    silent.rewards[:] = 0.0
    probes = np.arange(len(cross.token_ids), dtype=np.int32)
    question = ScoreRequest(cross.problems, cross.token_ids, cross.lengths, probes, 10)
    [scores] = engine.call(Branch.score, {"b": [question]})["b"]
    return (
        TrainingBatch("text", native),
        TrainingBatch("image", cross, scores),
        TrainingBatch("video", silent),
    )


def gradient(engine, batch, signal):
    """Of `-mean(signal * log pi)`, straight from autograd, as one vector in float64."""
    branch = engine._branches["a"]
    policy = branch._policy
    rows = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
    groups = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    states = policy.score(branch._prompt_cache.prompts(batch.problems), *flat(groups))
    logits = (states.hidden @ policy.head.T).masked_fill(policy.banned, -torch.inf)
    logprobs = logits.log_softmax(-1)[torch.arange(len(signal)), states.token_ids]
    grads = torch.autograd.grad(
        -(signal * logprobs).mean(), list(policy.model.parameters()), allow_unused=True
    )
    return torch.cat(
        [
            torch.zeros(parameter.numel()).double() if grad is None else grad.double().flatten()
            for parameter, grad in zip(policy.model.parameters(), grads, strict=True)
        ]
    )


@pytest.mark.parametrize("micro_batch_tokens", [16384, 100])
def test_cosine_and_norms_are_those_of_autograd(make_engine, micro_batch_tokens):
    optimizer = {"learning_rate": 1e-3, "micro_batch_tokens": micro_batch_tokens}
    engine = make_engine("a", "b", monitor=MEASURED, optimizer=optimizer)
    native, cross, silent = batches(engine)
    assert cross.teacher is not None
    rewards = torch.from_numpy(native.rollouts.rewards)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    signal = advantages.flatten().repeat_interleave(torch.from_numpy(native.rollouts.lengths))
    delta = torch.from_numpy(cross.teacher.logprobs - cross.rollouts.logprobs)
    first, second = (
        gradient(engine, batch.rollouts, s) for batch, s in ((native, signal), (cross, delta))
    )
    wanted = UpdateRequest((native, cross, silent), "stage test, step 1")
    metrics = engine.call(Branch.update, {"a": wanted})["a"]
    cosine = float(first @ second / (first.norm() * second.norm()))
    assert abs(cosine) > 1e-3
    key = "update/cosine/rlvr/text|opd/from_b/image"
    assert metrics[key] == pytest.approx(cosine, abs=2e-5)
    assert metrics["rlvr/text/grad_norm"] == pytest.approx(float(first.norm()), rel=1e-4)
    assert metrics["opd/from_b/image/grad_norm"] == pytest.approx(float(second.norm()), rel=1e-4)
    # a batch without a gradient has no direction
    assert metrics["rlvr/video/grad_norm"] == 0.0
    assert [name for name in metrics if name.startswith("update/cosine/")] == [key]


def test_the_update_is_the_one_that_is_made_without_measuring(make_engine):
    after = []
    for monitor in ({}, MEASURED):
        engine = make_engine("a", "b", monitor=monitor)
        seen = {}
        branch = engine._branches["a"]
        branch._optimizer.step = lambda seen=seen, branch=branch: seen.update(
            {n: p.grad.clone() for n, p in branch._policy.model.named_parameters()}
        )
        wanted = UpdateRequest(batches(engine), "stage test, step 1")
        metrics = engine.call(Branch.update, {"a": wanted})["a"]
        after.append((seen, metrics))
    (plain, plain_metrics), (apart, metrics) = after
    for name, grad in plain.items():
        assert torch.allclose(apart[name], grad, rtol=1e-4, atol=1e-7), name
    more = metrics.keys() - plain_metrics.keys()
    assert all(name.endswith("/grad_norm") or "/cosine/" in name for name in more)
    assert {name: metrics[name] for name in plain_metrics} == pytest.approx(plain_metrics, rel=1e-4)


def test_hand_made_gradients():
    """Two parameters; the second batch does not touch the second, the third is opposite."""
    x, y = torch.zeros(2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    gradients = Gradients([x, y])
    for action, of_x, of_y in (
        ("one", [3.0, 0.0], [[0.0, 4.0]]),
        ("two", [2.0, 0.0], None),
        ("three", [-6.0, 0.0], [[0.0, -8.0]]),
    ):
        assert x.grad is None and y.grad is None
        x.grad = torch.tensor(of_x)
        y.grad = None if of_y is None else torch.tensor(of_y)
        gradients.take(action)
    assert gradients.restore_sum() == pytest.approx(
        {
            "one/grad_norm": 3 * 5.0,
            "two/grad_norm": 3 * 2.0,
            "three/grad_norm": 3 * 10.0,
            "update/cosine/one|two": 0.6,
            "update/cosine/one|three": -1.0,
            "update/cosine/two|three": -0.6,
        }
    )
    assert x.grad is not None and x.grad.tolist() == [-1.0, 0.0]
    assert y.grad is not None and y.grad.tolist() == [[0.0, -4.0]]


def test_a_single_lesson_has_a_norm_and_no_cosine():
    x = torch.zeros(2, requires_grad=True)
    gradients = Gradients([x])
    x.grad = torch.tensor([1.0, 1.0])
    gradients.take("one")
    assert gradients.restore_sum() == {"one/grad_norm": pytest.approx(math.sqrt(2))}

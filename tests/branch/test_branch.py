"""A branch on the embedded base: sampling, scoring and the combined update."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from copd.branch import Branch, Diverged
from copd.functional import full_logprobs, symmetric_kl
from copd.types import (
    EvaluationRequest,
    ProblemId,
    RolloutRequest,
    ScoreRequest,
    TrainingBatch,
    UpdateRequest,
)
from tests.packing import flat

DOMAINS = ("text", "image", "video")


def request(domain, seed=0, count=4, action=None):
    problems = tuple(ProblemId(domain, "train", i) for i in range(count))
    return RolloutRequest(action or f"rlvr/{domain}", problems, 1.0, seed, "step 1")


def question(batch, top_k=0):
    probes = np.arange(len(batch.token_ids), dtype=np.int32)
    return ScoreRequest(batch.problems, batch.token_ids, batch.lengths, probes, top_k)


def sample(engine, name, domain, **options):
    [batch] = engine.call(Branch.sample, {name: [request(domain, **options)]})[name]
    return batch


def score(engine, name, batch, **options):
    [scores] = engine.call(Branch.score, {name: [question(batch, **options)]})[name]
    return scores


def update(engine, name, *batches):
    wanted = UpdateRequest(tuple(batches), "stage test, step 1")
    return engine.call(Branch.update, {name: wanted})[name]


def weights(engine, name):
    return engine.call(Branch.weights, {name: None})[name]


def differ(engine, name):
    """Moves a branch away from the base, so that it has something to say."""
    generator = torch.Generator().manual_seed(7)
    moved = {
        key: value + 0.02 * torch.randn(value.shape, generator=generator)
        for key, value in weights(engine, name).items()
    }
    engine.call(Branch.set_weights, {name: moved})


@pytest.mark.parametrize("domain", DOMAINS)
def test_sampling_is_reproducible_and_verified(make_engine, domain):
    engine = make_engine("a")
    first, again = (sample(engine, "a", domain, seed=3) for _ in range(2))
    other = sample(engine, "a", domain, seed=4)
    assert np.array_equal(first.token_ids, again.token_ids)
    assert np.array_equal(first.logprobs, again.logprobs)
    assert not np.array_equal(first.token_ids, other.token_ids)
    assert first.rewards.shape == (4, 4)
    assert first.lengths.sum() == len(first.token_ids) == len(first.logprobs)
    assert set(first.rewards.flatten()) <= {0.0, 1.0}
    cache = engine._branches["a"]._prompt_cache
    rewards = [cache.verify(first.problems[i // 4], text) for i, text in enumerate(first.texts)]
    assert first.rewards.flatten().tolist() == rewards
    assert (first.lengths[first.is_truncated] == 12).all()


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_equal_teacher_says_what_the_student_knows(make_engine, domain):
    engine = make_engine("student", "teacher")
    batch = sample(engine, "student", domain)
    scores = score(engine, "teacher", batch)
    assert np.abs(scores.logprobs - batch.logprobs).max() < 1e-5
    # the whole distribution sums to one and contains the sampled token
    assert np.exp(scores.topk_logprobs).sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    at_token = scores.topk_ids == batch.token_ids[:, None]
    assert np.abs(scores.topk_logprobs[at_token] - scores.logprobs).max() < 1e-6


def test_scores_do_not_depend_on_micro_batches(make_engine):
    whole = make_engine("a")
    parts = make_engine("a", optimizer={"micro_batch_tokens": 60})
    batch = sample(whole, "a", "image")
    a, b = (score(engine, "a", batch, top_k=5) for engine in (whole, parts))
    assert np.abs(a.logprobs - b.logprobs).max() < 1e-5
    assert np.allclose(a.topk_logprobs, b.topk_logprobs, rtol=1e-5, atol=1e-5)


def test_a_teacher_does_not_move_while_asked(make_engine):
    engine = make_engine("student", "teacher")
    batch = sample(engine, "student", "image")
    before = weights(engine, "teacher")
    state = torch.get_rng_state()
    first = score(engine, "teacher", batch)
    again = score(engine, "teacher", batch)
    assert np.array_equal(first.logprobs, again.logprobs)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in weights(engine, "teacher").items())
    policy = engine._branches["teacher"]._policy
    assert not policy.model.training
    assert all(p.grad is None and p.requires_grad for p in policy.model.parameters())


def test_a_mutual_step_is_the_hand_computed_combined_gradient(make_engine):
    """-1/2 [ mean A log pi over native tokens + mean beta delta log pi over cross tokens ]."""
    engine = make_engine("a", "b", optimizer={"learning_rate": 1e-3, "max_grad_norm": 1e9})
    differ(engine, "b")
    native = sample(engine, "a", "text", count=6)
    cross = sample(engine, "a", "image", action="opd/from_b/image")
    scores = score(engine, "b", cross)
    assert 0 < native.rewards.mean() < 1
    assert np.abs(scores.logprobs - cross.logprobs).max() > 0.01

    branch = engine._branches["a"]
    policy, cache = branch._policy, branch._prompt_cache
    policy.model.zero_grad()
    rewards = torch.from_numpy(native.rewards)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    per_token = advantages.flatten().repeat_interleave(torch.from_numpy(native.lengths))
    delta = torch.from_numpy(scores.logprobs - cross.logprobs)
    loss = torch.tensor(0.0)
    for batch, signal in ((native, per_token), (cross, 0.5 * delta)):
        rows = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
        groups = [rows[i : i + 4] for i in range(0, len(rows), 4)]
        states = policy.score(cache.prompts(batch.problems), *flat(groups))
        logits = (states.hidden @ policy.head.T).masked_fill(policy.banned, -torch.inf)
        logprobs = logits.log_softmax(-1)[torch.arange(len(signal)), states.token_ids]
        loss = loss - 0.5 * (signal * logprobs).mean()
    loss.backward()
    expected = {n: p.grad.clone() for n, p in policy.model.named_parameters()}

    seen = {}
    take = branch._optimizer.step

    def remember():
        seen.update({n: p.grad.clone() for n, p in policy.model.named_parameters()})
        return take()

    branch._optimizer.step = remember
    metrics = update(
        engine, "a", TrainingBatch("text", native), TrainingBatch("image", cross, scores, beta=0.5)
    )
    for name, gradient in expected.items():
        assert torch.allclose(seen[name], gradient, rtol=1e-3, atol=1e-6), name
    norm = torch.cat([g.flatten() for g in expected.values()]).norm()
    assert metrics["update/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize(
    "distill", [{"type": "sampled"}, {"type": "topk", "top_k": 4}, {"type": "full"}]
)
def test_micro_batches_do_not_change_the_update(make_engine, distill):
    after = []
    for tokens in (16384, 70):
        engine = make_engine(
            "a",
            "b",
            optimizer={"micro_batch_tokens": tokens, "learning_rate": 1e-2},
            distill=distill,
        )
        differ(engine, "b")
        native, cross = sample(engine, "a", "text"), sample(engine, "a", "video")
        scores = score(engine, "b", cross, top_k=10 if distill["type"] == "topk" else 0)
        metrics = update(
            engine, "a", TrainingBatch("text", native), TrainingBatch("video", cross, scores)
        )
        after.append((weights(engine, "a"), metrics))
    (whole, whole_metrics), (parts, parts_metrics) = after
    assert whole_metrics.keys() == parts_metrics.keys()
    for key, value in whole_metrics.items():
        assert parts_metrics[key] == pytest.approx(value, rel=1e-3, abs=1e-4), key
    # Adam divides by the gradient's own size, so compare the bulk of the weights
    moved = torch.cat([(whole[k] - parts[k]).abs().flatten() for k in whole])
    assert moved.quantile(0.99) < 1e-3


def test_prompts_read_while_sampling_give_the_gradient_of_reading_them_again(make_engine):
    """Native and cross batch, picture and clip; the vision tower's gradient included."""
    gradients = []
    for again in (False, True):
        engine = make_engine("a", "b")
        differ(engine, "b")
        branch = engine._branches["a"]
        visual = branch._policy.model.model.visual
        passes = []
        hook = visual.register_forward_pre_hook(lambda *_, seen=passes: seen.append(1))
        requests = [request("image"), request("video", seed=1)]
        native, cross = engine.call(Branch.sample, {"a": requests})["a"]
        scores = score(engine, "b", cross)
        if again:
            branch._prefixes.clear()
        branch._prompt_cache._entries.clear()
        parameters = branch._policy.parameters()
        branch._optimizer.step = lambda seen=parameters: gradients.append(
            {name: p.grad for name, p in seen.items()}
        )
        update(engine, "a", TrainingBatch("image", native), TrainingBatch("video", cross, scores))
        hook.remove()
        assert bool(branch._prompt_cache._entries) is again  # else nothing is rendered once more
        assert len(passes) == (4 if again else 2)
        assert branch._prefixes == {}
        assert all(p.grad is None for p in parameters.values())
    kept, read_again = gradients
    for name, gradient in read_again.items():
        difference = (kept[name] - gradient).norm() / gradient.norm()
        assert difference < 1e-4, name


def test_a_changed_policy_forgets_what_it_has_read(make_engine, tmp_path):
    engine = make_engine("a")
    branch = engine._branches["a"]
    sample(engine, "a", "text")
    assert len(branch._prefixes) == 1
    engine.call(Branch.set_weights, {"a": weights(engine, "a")})
    assert branch._prefixes == {}
    sample(engine, "a", "text")
    engine.call(Branch.save, {"a": tmp_path})
    engine.call(Branch.restore, {"a": tmp_path})
    assert branch._prefixes == {}


def test_a_teacher_answers_several_students_in_one_pass(make_engine):
    engine = make_engine("a", "b")
    differ(engine, "b")
    batches = [sample(engine, "a", "image", seed=seed, count=2) for seed in range(2)]
    alone = [score(engine, "b", batch, top_k=3) for batch in batches]
    passes = []
    teacher = engine._branches["b"]._policy.model.model.language_model
    hook = teacher.register_forward_pre_hook(lambda *_: passes.append(1))
    questions = [question(batch, top_k=3) for batch in batches]
    together = engine.call(Branch.score, {"b": questions})["b"]
    hook.remove()
    assert len(passes) == 2  # prompts, completions
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5, rtol=1e-5)
        assert one.topk_ids[:, 0].tolist() == other.topk_ids[:, 0].tolist()


def test_pair_metrics_are_those_of_the_two_distributions(make_engine):
    engine = make_engine("a", "b", monitor={"num_probe_tokens": 4096})
    differ(engine, "b")
    batch = sample(engine, "a", "text")
    scores = score(engine, "b", batch)
    metrics = update(engine, "a", TrainingBatch("text", batch, scores))
    delta = scores.logprobs - batch.logprobs
    key = "rlvr/text/"
    assert metrics[key + "delta_mean"] == pytest.approx(delta.mean(), abs=1e-6)
    assert metrics[key + "delta_min"] == pytest.approx(delta.min(), abs=1e-6)
    assert metrics[key + "delta_max"] == pytest.approx(delta.max(), abs=1e-6)
    assert metrics[key + "train_inference_mismatch"] < 1e-5
    assert 0 < metrics[key + "overlap"] < 1

    fresh = make_engine("a", "b")
    differ(fresh, "b")
    distributions = []
    for name in ("a", "b"):
        policy = fresh._branches[name]._policy
        rows = np.split(batch.token_ids, np.cumsum(batch.lengths)[:-1])
        groups = [rows[i : i + 4] for i in range(0, len(rows), 4)]
        with torch.no_grad():
            states = policy.score(
                fresh._branches[name]._prompt_cache.prompts(batch.problems), *flat(groups)
            )
            distributions.append(full_logprobs(states.hidden, policy.head, banned=policy.banned))
    student, teacher = distributions
    expected = symmetric_kl(student, teacher).mean()
    assert metrics[key + "symmetric_kl"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize(
    "distill",
    [
        {"type": "sampled"},
        {"type": "sampled", "control_variate": True},
        {"type": "full", "form": "reverse"},
        {"type": "full", "form": "forward"},
        {"type": "topk", "form": "jsd", "top_k": 8},
    ],
)
def test_every_distillation_loss_makes_the_student_behave_like_the_teacher(make_engine, distill):
    """The teacher has learned to answer hastily; the student follows, on its own completions."""
    engine = make_engine(
        "a",
        "b",
        optimizer={"learning_rate": 5e-4},
        distill=distill,
        rollout={"num_prompts": 8, "group_size": 4, "max_completion_tokens": 30},
    )
    for step in range(6):
        batch = sample(engine, "b", "text", seed=step, count=8)
        hasty = [
            [float(text.startswith("C")) for text in batch.texts[i : i + 4]]
            for i in range(0, 32, 4)
        ]
        update(
            engine, "b", TrainingBatch("text", replace(batch, rewards=np.array(hasty, np.float32)))
        )
    shares = []
    for step in range(10):
        batch = sample(engine, "a", "text", seed=100 + step, count=8)
        shares.append(np.mean([text.startswith("C") for text in batch.texts]))
        scores = score(engine, "b", batch, top_k=12 if distill["type"] == "topk" else 0)
        update(engine, "a", TrainingBatch("text", batch, scores))
    assert np.mean(shares[-3:]) > shares[0] + 0.25


def test_frozen_vision_stays_where_it_is(make_engine):
    engine = make_engine("a", model={"path": "tiny", "device": "cpu", "frozen_vision": True})
    before = weights(engine, "a")
    update(engine, "a", TrainingBatch("image", sample(engine, "a", "image")))
    after = weights(engine, "a")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any("visual" in name for name in changed)


def test_saved_branches_come_back_with_their_optimizer(make_engine, tmp_path):
    engine = make_engine("a")
    update(engine, "a", TrainingBatch("text", sample(engine, "a", "text")))
    engine.call(Branch.save, {"a": tmp_path / "here"})
    batch = sample(engine, "a", "text", seed=9)
    update(engine, "a", TrainingBatch("text", batch))

    other = make_engine("a")
    other.call(Branch.restore, {"a": tmp_path / "here"})
    update(other, "a", TrainingBatch("text", batch))
    a, b = weights(engine, "a"), weights(other, "a")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_loss_that_is_not_finite_stops_and_says_where(make_engine):
    engine = make_engine("a", "b")
    batch = sample(engine, "a", "text")
    scores = score(engine, "b", batch)
    scores.logprobs[3] = np.inf
    before = weights(engine, "a")
    with pytest.raises(Diverged, match=r"loss of branch 'a' on domain 'text' is .* at stage test"):
        update(engine, "a", TrainingBatch("text", batch, scores))
    assert all(torch.equal(before[k], v) for k, v in weights(engine, "a").items())


def test_a_gradient_that_is_not_finite_stops_and_says_where(make_engine):
    engine = make_engine("a")
    batch = sample(engine, "a", "image")
    parameter = next(engine._branches["a"]._policy.model.parameters())
    handle = parameter.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(Diverged, match=r"gradient of branch 'a' on domain 'image' is nan"):
        update(engine, "a", TrainingBatch("image", batch))
    handle.remove()


def test_evaluation_repeats_and_counts(make_engine):
    engine = make_engine("a")
    wanted = EvaluationRequest("image", "test", 7, 3, 0.7, 30, seed=5)
    first, again = (engine.call(Branch.evaluate, {"a": wanted})["a"] for _ in range(2))
    assert first.rewards.shape == first.lengths.shape == (7, 3)
    assert np.array_equal(first.rewards, again.rewards)
    assert first.suites == ("signed_sum", "extreme", "count") * 2 + ("signed_sum",)


def test_temperature_is_the_native_batches_own(make_engine):
    """Tempered samples are scored at their temperature in the update; a teacher never is."""
    engine, other = make_engine("a"), make_engine("a")
    wanted = RolloutRequest("rlvr/text", request("text").problems, 2.0, 0, "step 1")
    [batch] = engine.call(Branch.sample, {"a": [wanted]})["a"]
    assert batch.temperature == 2.0
    assert np.abs(score(engine, "a", batch).logprobs - batch.logprobs).max() > 0.1
    assert (
        update(engine, "a", TrainingBatch("text", batch))["rlvr/text/train_inference_mismatch"]
        < 1e-5
    )
    plain = replace(batch, temperature=1.0)
    assert (
        update(other, "a", TrainingBatch("text", plain))["rlvr/text/train_inference_mismatch"] > 0.1
    )

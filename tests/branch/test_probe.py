"""How like one another branches are: against whole distributions, and on hand-made tokens."""

import numpy as np
import pytest
import torch

from copd.branch import Branch
from copd.branch.probe import interleave_probes
from copd.functional import entropy, full_logprobs, symmetric_kl, topk_overlap
from copd.types import ProbeRollouts, ProblemId, RolloutRequest, Split, TrainingBatch, UpdateRequest
from tests.packing import flat

DOMAINS = ("text", "image", "video")
SMALL = {"num_samples": 2, "num_probe_tokens": 4096}


def request(domain, seed=0, count=3, split: Split = "validation"):
    problems = tuple(ProblemId(domain, split, i) for i in range(count))
    return RolloutRequest("dynamics", problems, 1.0, seed, "stage test, step 1")


def probe(engine, name, *domains, **options):
    requests = [request(domain, **options) for domain in domains]
    return engine.call(Branch.probe, {name: requests})[name]


def measure_agreement(engine, name, *portraits):
    [likenesses] = engine.call(Branch.measure_agreement, {name: [portraits]})[name]
    return likenesses


def differ(engine, *names):
    """Moves branches away from the base, each by its own draw."""
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        moved = {
            key: value + 0.02 * torch.randn(value.shape, generator=generator)
            for key, value in engine.call(Branch.weights, {name: None})[name].items()
        }
        engine.call(Branch.set_weights, {name: moved})


@torch.no_grad()
def distributions(engine, name, portrait):
    """Of every token of a portrait, from one plain pass."""
    branch = engine._branches[name]
    rows = np.split(portrait.token_ids, np.cumsum(portrait.lengths)[:-1])
    size = len(rows) // len(portrait.problems)
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    states = branch._policy.score(branch._prompt_cache.prompts(portrait.problems), *flat(groups))
    return full_logprobs(states.hidden, branch._policy.head, banned=branch._policy.banned)


@pytest.mark.parametrize(
    ("domain", "micro_batch_tokens"), [("text", 100), ("image", 16384), ("video", 100)]
)
def test_likeness_is_that_of_the_whole_distributions(make_engine, domain, micro_batch_tokens):
    optimizer = {"micro_batch_tokens": micro_batch_tokens}
    engine = make_engine("a", "b", "c", monitor=SMALL, optimizer=optimizer)
    differ(engine, "a", "b")
    portraits = [probe(engine, name, domain, seed=n)[0] for n, name in enumerate("ab")]
    assert all(len(p.probes) == len(p.token_ids) == p.lengths.sum() for p in portraits)
    assert all(len(p.lengths) == 3 * 2 for p in portraits)
    likenesses = measure_agreement(engine, "c", *portraits)
    for name, portrait, likeness in zip("ab", portraits, likenesses, strict=True):
        own, other = (distributions(engine, model, portrait) for model in (name, "c"))
        assert portrait.entropy == pytest.approx(float(entropy(own).mean()), rel=1e-4)
        assert likeness.symmetric_kl > 0.001
        expected = float(symmetric_kl(own, other).mean())
        assert likeness.symmetric_kl == pytest.approx(expected, rel=1e-3)
        shared = topk_overlap(own.topk(10).indices, other.topk(10).indices)
        assert 0 < likeness.overlap < 1
        assert likeness.overlap == pytest.approx(float(shared.mean()), abs=1e-3)


def test_only_the_probes_count(make_engine):
    engine = make_engine("a", "b", monitor={**SMALL, "num_probe_tokens": 5})
    differ(engine, "a")
    [portrait] = probe(engine, "a", "text")
    assert len(portrait.probes) == 5 == len(set(portrait.probes)) < len(portrait.token_ids)
    assert sorted(portrait.probes) == portrait.probes.tolist()
    own, other = (distributions(engine, name, portrait)[portrait.probes] for name in "ab")
    [likeness] = measure_agreement(engine, "b", portrait)
    expected = float(symmetric_kl(own, other).mean())
    assert likeness.symmetric_kl == pytest.approx(expected, rel=1e-3)


def test_few_top_tokens_give_a_lower_bound(make_engine):
    found = []
    for top_k in (10, 4096):
        engine = make_engine("a", "b", monitor={**SMALL, "probe_top_k": top_k})
        differ(engine, "a")
        [portrait] = probe(engine, "a", "text")
        vocabulary = distributions(engine, "a", portrait).shape[1]
        assert portrait.topk_ids.shape[1] == min(top_k, vocabulary)
        found += measure_agreement(engine, "b", portrait)
    few, all_of_them = found
    assert few.overlap == all_of_them.overlap
    assert 0.5 * all_of_them.symmetric_kl < few.symmetric_kl < all_of_them.symmetric_kl


def test_equal_branches_are_alike(make_engine):
    engine = make_engine("a", "b", monitor=SMALL)
    portraits = probe(engine, "a", *DOMAINS)
    [likenesses] = engine.call(Branch.measure_agreement, {"b": [portraits[:1]]})["b"]
    assert likenesses[0].overlap == 1.0
    assert likenesses[0].symmetric_kl < 1e-6  # rounding of log-probabilities
    # all domains at once, or one alone: the same tokens
    assert np.array_equal(portraits[1].token_ids, probe(engine, "a", "image")[0].token_ids)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_portrait_between_sampling_and_update_changes_no_bit(make_engine, frozen):
    """Prompts kept for the update, their graph, remembered pictures: all stay as they are."""
    after = []
    for measured in (False, True):
        model = {"path": "tiny", "device": "cpu", "frozen_vision": frozen}
        engine = make_engine("a", "b", model=model, monitor=SMALL)
        trained = request("image", split="train")
        [batch] = engine.call(Branch.sample, {"a": [trained]})["a"]
        state, remembered = (
            torch.get_rng_state(),
            list(engine._branches["a"]._prompt_cache._entries),
        )
        if measured:
            measure_agreement(engine, "b", *probe(engine, "a", "image"))
            measure_agreement(engine, "a", *probe(engine, "b", "image"))
        branch = engine._branches["a"]
        assert set(branch._prefixes) == {trained.problems}
        assert torch.equal(state, torch.get_rng_state())
        assert list(branch._prompt_cache._entries) == remembered
        assert all(p.grad is None for p in branch._policy.model.parameters())
        wanted = UpdateRequest((TrainingBatch("image", batch),), "stage test, step 1")
        metrics = engine.call(Branch.update, {"a": wanted})["a"]
        after.append((metrics, engine.call(Branch.weights, {"a": None})["a"]))
    (plain_metrics, plain), (metrics, weights) = after
    assert metrics == plain_metrics
    assert all(torch.equal(plain[name], weights[name]) for name in plain)


def test_a_model_reads_the_problems_once_for_all_portraits(make_engine):
    engine = make_engine("a", "b", monitor=SMALL)
    portraits = [probe(engine, "a", "image", seed=seed)[0] for seed in range(3)]
    passes = []
    vision = engine._branches["b"]._policy.model.model.visual
    hook = vision.register_forward_pre_hook(lambda *_: passes.append(1))
    measure_agreement(engine, "b", *portraits)
    assert len(passes) == 1
    probe(engine, "b", "image")
    assert len(passes) == 2  # sampling and telling share it too
    hook.remove()


def test_completions_of_a_problem_come_together():
    problems = (ProblemId("d", "validation", 0), ProblemId("d", "validation", 1))

    def portrait(tokens, lengths, probes):
        return ProbeRollouts(
            problems,
            np.array(tokens, dtype=np.int32),
            np.array(lengths, dtype=np.int32),
            np.array(probes, dtype=np.int32),
            np.zeros((len(probes), 1), dtype=np.int32),
            np.zeros((len(probes), 1), dtype=np.float32),
            logprobs=np.zeros(len(probes), dtype=np.float32),
            entropies=np.zeros(len(probes), dtype=np.float32),
            entropy=0.0,
            texts=("",) * len(lengths),
        )

    question, source = interleave_probes(
        [portrait([1, 2, 3], [1, 2], [0, 2]), portrait([4, 5, 6, 7], [3, 1], [1, 2, 3])]
    )
    assert question.token_ids.tolist() == [1, 4, 5, 6, 2, 3, 7]
    assert question.lengths.tolist() == [1, 3, 2, 1]
    assert question.probes.tolist() == [0, 2, 3, 5, 6]  # the tokens 1, 5, 6, 3, 7
    assert source.tolist() == [0, 2, 3, 1, 4]

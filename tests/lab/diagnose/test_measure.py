"""Diagnoses of real models, compared with numbers computed by hand, and refused pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from copd.branch import Branch
from copd.engine import create_engine
from copd.lab.diagnose.measure import run_diagnosis
from copd.policy import Policy, Vocabulary, require_same
from copd.policy.tiny import resolve
from copd.run.evaluation import evaluate_branches, evaluation_request
from copd.types import ProblemId, RolloutRequest
from tests.conftest import READING_TEMPLATE, character_tokenizer, reading_model, token_id


def distributions(policy: Policy, config, name: str, probes) -> list[np.ndarray]:
    """Return log-probabilities of every completion, `T V` each, by one plain forward per row."""
    engine = create_engine(config)
    engine.spawn("own", "tiny")
    prompts = engine._branches["own"]._prompt_cache.prompts(probes.problems)  # pyright: ignore
    rows = np.split(probes.token_ids, np.cumsum(probes.lengths)[:-1])
    banned, found = policy.banned.numpy(), []
    for place, row in enumerate(rows):
        prompt = prompts[place * len(prompts) // len(rows)].input_ids
        ids = torch.cat([torch.as_tensor(prompt), torch.from_numpy(row).long()])[None]
        with torch.no_grad():
            logits = policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        values = logits.double().numpy()
        values[:, banned] = -np.inf
        found.append(values - np.log(np.exp(values).sum(axis=1, keepdims=True)))
    return found


def by_hand(p: np.ndarray, q: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Return all measures at `T` tokens from log-probabilities `T V`: p student, q teacher."""
    allowed = np.isfinite(p[0])
    every, p, q = np.arange(len(p)), p[:, allowed], q[:, allowed]
    tokens = (np.cumsum(allowed) - 1)[tokens]
    tops = [np.argsort(-x, axis=1)[:, :10] for x in (p, q)]
    reverse = (np.exp(p) * (p - q)).sum(axis=1)
    forward = (np.exp(q) * (q - p)).sum(axis=1)
    entropies = [-(np.exp(x) * x).sum(axis=1) for x in (p, q)]
    return {
        "overlap": np.array([len({*a} & {*b}) / 10 for a, b in zip(*tops, strict=True)]),
        "student_top_under_teacher": np.exp(np.take_along_axis(q, tops[0], 1)).sum(axis=1),
        "teacher_top_under_student": np.exp(np.take_along_axis(p, tops[1], 1)).sum(axis=1),
        "reverse_kl": reverse,
        "forward_kl": forward,
        "symmetric_kl": reverse + forward,
        "student_entropy": entropies[0],
        "teacher_entropy": entropies[1],
        "entropy_gap": entropies[1] - entropies[0],
        "delta": q[every, tokens] - p[every, tokens],
    }


def student_probes(config, folder: Path, name: str):
    """Sample the rollouts of a diagnosis again."""
    engine = create_engine(config)
    engine.spawn("student", str(folder))
    evaluation = evaluation_request(config, name, "validation")
    problems = tuple(ProblemId(name, "validation", i) for i in range(evaluation.num_problems))
    request = RolloutRequest("again", problems, 1.0, evaluation.seed, "a test")
    return engine.call(Branch.probe, {"student": [request]})["student"][0]


def test_every_measure_equals_the_one_computed_by_hand(settings, diagnosed, moved_folder):
    config, found = settings(), diagnosed.domains["text"]
    probes = student_probes(config, moved_folder, "text")
    models = [Policy.load(resolve(path)) for path in (str(moved_folder), "tiny")]
    both = [distributions(policy, config, "text", probes) for policy in models]
    rows = np.split(probes.token_ids, np.cumsum(probes.lengths)[:-1])
    values = [by_hand(p, q, row) for p, q, row in zip(*both, rows, strict=True)]
    assert found.is_exact
    assert found.whole.summary.num_problems == 4
    assert found.whole.summary.num_tokens == len(probes.token_ids)
    last = found.bins[0].last
    for name, estimate in found.whole.summary.means.items():
        pairs = [np.concatenate([values[2 * i][name], values[2 * i + 1][name]]) for i in range(4)]
        means = [pair.mean() for pair in pairs]
        half = 1.959963984540054 * np.std(means, ddof=1) / 2
        assert estimate.mean == pytest.approx(np.mean(means), rel=1e-3, abs=1e-4), name
        assert estimate.high - estimate.mean == pytest.approx(half, rel=1e-3, abs=1e-4), name
        early = [
            np.concatenate([values[2 * i][name][:last], values[2 * i + 1][name][:last]]).mean()
            for i in range(4)
        ]
        first = found.bins[0].summary.means[name].mean
        assert first == pytest.approx(np.mean(early), rel=1e-3, abs=1e-4), name
    assert sum(b.summary.num_tokens for b in found.bins) == len(probes.token_ids)


def test_accuracies_are_those_of_an_evaluation(settings, diagnosed, moved_folder):
    """Each model answers itself, at temperature 1 and with the seed of an evaluation."""
    for role, path in (("student", str(moved_folder)), ("teacher", "tiny")):
        engine = create_engine(settings())
        engine.spawn(role, path)
        results = evaluate_branches(engine, settings(), [role], split="validation")[role]
        for name, own in diagnosed.domains.items():
            assert own.whole.accuracy[role].mean == np.mean(results[name].accuracy)
            assert set(own.suites) == set(results[name].suites)
            for suite, group in own.suites.items():
                assert group.accuracy[role].mean == np.mean(results[name].of_suite(suite))


def test_a_model_has_nothing_to_teach_itself(settings):
    found = run_diagnosis("tiny", "tiny", settings("image"), split="validation", say=print)
    own = found.domains["image"]
    means = own.whole.summary.means
    assert own.verdict.word == "nothing to teach"
    assert means["overlap"].mean == 1.0
    for name in ("reverse_kl", "forward_kl", "delta", "entropy_gap"):
        assert abs(means[name].mean) < 1e-5, name
    assert own.whole.accuracy["difference"].mean == 0.0


def test_few_probed_top_tokens_bound_the_divergences_from_below(settings, diagnosed, moved_folder):
    config = settings("text", monitor={"probe_top_k": 10})
    found = run_diagnosis(str(moved_folder), "tiny", config, split="validation", say=print)
    few, exact = (d.domains["text"].whole.summary.means for d in (found, diagnosed))
    assert not found.domains["text"].is_exact
    for name in ("reverse_kl", "forward_kl", "teacher_top_under_student"):
        assert 0.3 * exact[name].mean < few[name].mean < exact[name].mean, name
    for name in ("overlap", "student_top_under_teacher", "teacher_entropy", "delta"):
        assert few[name].mean == pytest.approx(exact[name].mean, rel=1e-5), name


def test_families_and_spare_rows_of_the_head_may_differ(settings, reading_folders, tmp_path):
    model = reading_model("llama")
    model.resize_token_embeddings(150)
    model.save_pretrained(tmp_path)
    character_tokenizer(READING_TEMPLATE).save_pretrained(tmp_path)
    models = str(tmp_path), str(reading_folders["qwen3"])
    for student, teacher in (models, models[::-1]):
        found = run_diagnosis(student, teacher, settings("text"), split="validation", say=print)
        means = found.domains["text"].whole.summary.means
        assert found.domains["text"].is_exact
        assert all(np.isfinite(estimate.mean) for estimate in means.values())
        assert means["reverse_kl"].mean > 0.1 and 0 < means["overlap"].mean < 1


def test_another_tokenizer_is_refused(settings, reading_folders):
    with pytest.raises(ValueError, match="Choose a teacher with the student's tokenizer"):
        run_diagnosis(
            "tiny", str(reading_folders["llama"]), settings("text"), split="validation", say=print
        )


def test_another_end_of_completions_is_refused(settings, reading_folders, tmp_path):
    model = reading_model("qwen3")
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [token_id("<|im_end|>"), token_id("<|endoftext|>")]
    model.save_pretrained(tmp_path)
    character_tokenizer(READING_TEMPLATE).save_pretrained(tmp_path)
    models = str(reading_folders["qwen3"]), str(tmp_path)
    with pytest.raises(ValueError, match=r"got '<\|im_end\|>' and '<\|endoftext\|>', '<\|im_end"):
        run_diagnosis(*models, settings("text"), split="validation", say=print)


def test_a_model_that_cannot_see_is_refused(settings, reading_folders):
    qwen = str(reading_folders["qwen3"])
    with pytest.raises(ValueError, match="needs a model that reads image"):
        run_diagnosis(qwen, qwen, settings("image"), split="validation", say=print)


def test_missing_problems_and_domains_are_refused(settings):
    with pytest.raises(ValueError, match="Lower --num-problems"):
        settings(count=10**6)
    with pytest.raises(ValueError, match="got 'sound', it has text, image"):
        settings("sound")


def test_a_refused_vocabulary_names_the_differences():
    own = Vocabulary({0: "a", 1: "b", 2: "<end>"}, frozenset({2}), 5)
    require_same(own, own)
    require_same(own, Vocabulary(own.tokens, own.ends, 9))  # tokens that nobody samples
    swapped = Vocabulary({0: "b", 1: "a", 2: "<end>"}, frozenset({2}), 5)
    with pytest.raises(ValueError, match=r"2 of those .* differ: 0 is 'a' and 'b'; 1 is 'b' and"):
        require_same(own, swapped)
    longer = Vocabulary({**own.tokens, **{i: str(i) for i in range(3, 10)}}, frozenset({2}), 12)
    with pytest.raises(ValueError, match=r"got 5 and 12 tokens, 7 .* 3 is none and '3'.*; \.\.\."):
        require_same(own, longer)
    with pytest.raises(ValueError, match="Set the same eos_token_id"):
        require_same(own, Vocabulary(own.tokens, frozenset({1, 2}), 5))

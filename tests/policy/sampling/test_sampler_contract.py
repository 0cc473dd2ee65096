"""The contract of every sampler: the policy itself, a copy of the model with weights of its own,
and vLLM where it is installed (not run so far)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from copd.branch import Branch
from copd.branch.micro_batches import Forward
from copd.branch.prompts import PromptCache
from copd.branch.sampler_check import SamplerCheck, check_sampler
from copd.branch.sampling import InProcessSampler
from copd.config import Config, RolloutConfig
from copd.domains import load_domains
from copd.engine.local import load_policy
from copd.functional import full_logprobs, token_logprobs
from copd.policy import Policy, Prompt, Sampler, SamplingRequest, SamplingResult
from copd.policy.sampling.vllm import VllmEngine, VllmSampler
from copd.policy.tiny import resolve
from copd.run.preflight import require_agreement
from copd.types import (
    Completion,
    EvaluationRequest,
    ProblemId,
    RolloutRequest,
    TrainingBatch,
    UpdateRequest,
)
from tests.packing import flat

KINDS = ("text", "image", "video", "mixed")
LIMIT = 6


def forward_of(policy: Policy) -> Forward:
    return Forward(policy, 16_384, "float32")


class CopySampler:
    """Samples from a copy of the weights, which it takes from the policy after a refresh."""

    def __init__(self, policy: Policy, folder: Path) -> None:
        self._policy = policy
        self._own = Policy.load(folder)
        with torch.no_grad():
            for parameter in self._own.model.parameters():
                parameter.zero_()
        self._sampler = InProcessSampler(forward_of(self._own), max_rows=64)
        self._is_fresh = False

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        if not self._is_fresh:
            self._own.model.load_state_dict(self._policy.state_dict())
        self._is_fresh = True
        return SamplingResult(
            self._sampler.sample(batches, max_completion_tokens).completions, None
        )

    def refresh(self) -> None:
        self._is_fresh = False


class StaleSampler(CopySampler):
    """Ignores refreshes."""

    def refresh(self) -> None:
        pass


class AtTemperatureOne(CopySampler):
    """Reports log-probabilities at temperature 1, whatever it samples at."""

    def sample(
        self,
        batches: Sequence[SamplingRequest],
        max_completion_tokens: int,
        *,
        keep_graph: bool = False,
    ) -> SamplingResult:
        sampled = super().sample(batches, max_completion_tokens)
        rescored = [
            replace(
                own,
                logprobs=policy_logprobs(
                    self._own, w.prompts, own.token_ids, own.lengths, at=1.0
                ).numpy(force=True),
            )
            for w, own in zip(batches, sampled.completions, strict=True)
        ]
        return SamplingResult(rescored, None)


def policy_logprobs(policy: Policy, prompts: Sequence[Prompt], *packed, at: float) -> Tensor:
    with torch.no_grad():
        states = policy.score(prompts, *packed)
        return token_logprobs(
            states.hidden, policy.head, states.token_ids, banned=policy.banned, temperature=at
        )[0]


@dataclass(frozen=True)
class Subject:
    """A sampler, and the policy that it samples for."""

    policy: Policy
    sampler: Sampler
    atol: float

    def sample(
        self, prompts: Sequence[Prompt], temperature: float = 1.0, seed: int = 0, **where: int
    ) -> list[list[Completion]]:
        request = SamplingRequest(prompts, 4, temperature, seed, **where)
        return self.sampler.sample([request], LIMIT).completions[0].groups(4)


@pytest.fixture(scope="module")
def vllm_engine() -> VllmEngine:
    rollout = RolloutConfig.model_validate({"sampler": "vllm", "vllm": {"memory_share": 0.2}})
    return VllmEngine(rollout, "float32")


@pytest.fixture(
    params=[
        "internal",
        "copy",
        pytest.param("vllm", marks=[pytest.mark.gpu, pytest.mark.vllm]),
    ]
)
def subject(request: pytest.FixtureRequest, wide_folder: Path) -> Subject:
    if request.param == "vllm":
        policy = Policy.load(wide_folder, device="cuda")
        engine = request.getfixturevalue("vllm_engine")
        return Subject(policy, VllmSampler(policy, engine), 1e-2)
    policy = Policy.load(wide_folder)
    if request.param == "internal":
        return Subject(policy, InProcessSampler(forward_of(policy), max_rows=64), 5e-5)
    return Subject(policy, CopySampler(policy, wide_folder), 5e-5)


def scored(
    policy: Policy, prompts: Sequence[Prompt], groups: Sequence[Sequence[Completion]], at: float
) -> Tensor:
    packed = flat([[c.token_ids for c in group] for group in groups])
    return policy_logprobs(policy, prompts, *packed, at=at)


def gap(subject: Subject, prompts: Sequence[Prompt], groups, at: float = 1.0) -> float:
    reported = np.concatenate([c.logprobs for group in groups for c in group])
    return float(
        np.abs(reported - scored(subject.policy, prompts, groups, at).numpy(force=True)).max()
    )


def token_ids(groups: Sequence[Sequence[Completion]]) -> list[list[list[int]]]:
    return [[c.token_ids.tolist() for c in group] for group in groups]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_the_policys_prompt_by_prompt(subject, prompts_of, kind, temperature):
    prompts = prompts_of(subject.policy, kind)
    groups = subject.sample(prompts, temperature)
    assert [len(group) for group in groups] == [4] * len(prompts)
    assert gap(subject, prompts, groups, temperature) < subject.atol
    assert gap(subject, prompts, groups, 2.0) > 0.1


def test_a_completion_has_its_end_token_and_nothing_after(subject, prompts_of):
    groups = subject.sample(prompts_of(subject.policy, "mixed"), seed=1)
    completions = [c for group in groups for c in group]
    ends = subject.policy.end_tokens
    for c in completions:
        assert c.token_ids.dtype == np.int32 and c.logprobs.dtype == np.float32
        assert len(c.token_ids) == len(c.logprobs) and 1 <= len(c.token_ids) <= LIMIT
        assert not ends & set(c.token_ids[:-1].tolist())
        assert c.is_truncated == (c.token_ids[-1] not in ends)
        assert not c.is_truncated or len(c.token_ids) == LIMIT
    assert len({len(c.token_ids) for c in completions}) > 3
    assert {c.is_truncated for c in completions} == {True, False}


def test_no_banned_token_is_drawn(subject, prompts_of):
    groups = subject.sample(prompts_of(subject.policy, "text"), temperature=2.0)
    drawn = np.concatenate([c.token_ids for group in groups for c in group])
    assert not subject.policy.banned.cpu()[drawn].any()


@pytest.mark.parametrize("kind", ["text", "video"])
def test_at_temperature_0_the_most_probable_token_is_taken(subject, prompts_of, kind):
    prompts = prompts_of(subject.policy, kind)
    groups = subject.sample(prompts, temperature=0.0)
    assert all(ids == own[0] for own in token_ids(groups) for ids in own)
    assert gap(subject, prompts, groups, 1.0) < subject.atol
    with torch.no_grad():
        states = subject.policy.score(prompts, *flat([[c.token_ids for c in g] for g in groups]))
        best = full_logprobs(states.hidden, subject.policy.head, banned=subject.policy.banned)
    taken = scored(subject.policy, prompts, groups, 1.0)
    assert float((best.amax(dim=1) - taken).max()) < 2 * subject.atol


def test_equal_seeds_draw_equal_tokens_and_others_do_not(subject, prompts_of):
    prompts = prompts_of(subject.policy, "image")
    first = token_ids(subject.sample(prompts, seed=5))
    subject.sampler.refresh()
    assert token_ids(subject.sample(prompts, seed=5)) == first
    assert token_ids(subject.sample(prompts, seed=6)) != first


def test_a_slice_of_a_batch_draws_what_the_batch_would(subject, prompts_of):
    prompts = prompts_of(subject.policy, "text")
    whole = token_ids(subject.sample(prompts))
    subject.sampler.refresh()
    assert token_ids(subject.sample(prompts[1:], first_prompt=1, num_prompts=3)) == whole[1:]


def test_equal_prompts_of_a_batch_draw_different_completions(subject, prompts_of):
    prompt = prompts_of(subject.policy, "text")[0]
    groups = token_ids(subject.sample([prompt, prompt]))
    assert groups[0] != groups[1]
    assert len({tuple(ids) for group in groups for ids in group}) > 5


def test_batches_of_different_sizes_go_side_by_side(subject, prompts_of):
    few, many = prompts_of(subject.policy, "text")[:1], prompts_of(subject.policy, "image")
    requests = [SamplingRequest(few, 2, 1.0, 0), SamplingRequest(many, 3, 0.7, 1)]
    sampled = subject.sampler.sample(requests, LIMIT).completions
    found = [own.groups(r.group_size) for own, r in zip(sampled, requests, strict=True)]
    assert [[len(group) for group in own] for own in found] == [[2], [3, 3, 3]]
    assert gap(subject, few, found[0]) < subject.atol
    assert gap(subject, many, found[1], 0.7) < subject.atol


@pytest.mark.parametrize("kind", ["text", "image"])
def test_after_a_refresh_it_samples_from_the_weights_of_now(subject, prompts_of, kind):
    prompts = prompts_of(subject.policy, kind)
    subject.sample(prompts)
    weights = {name: p for name, p in subject.policy.parameters().items() if p.ndim == 1}
    moved = [p for name, p in weights.items() if kind == "text" or ".visual." in name]
    with torch.no_grad():
        for parameter in moved:
            parameter += 0.2
    subject.sampler.refresh()
    groups = subject.sample(prompts)
    assert gap(subject, prompts, groups) < subject.atol
    with torch.no_grad():
        for parameter in moved:
            parameter -= 0.2
    assert gap(subject, prompts, groups) > 0.05


def check(subject: Subject, prompts: Sequence[Prompt], temperature: float = 1.0) -> SamplerCheck:
    problems = tuple(ProblemId("d", "train", i) for i in range(len(prompts)))
    request = RolloutRequest("preflight", problems, temperature, 3, "the check")
    forward = forward_of(subject.policy)
    return check_sampler(forward, subject.sampler, [request], [prompts])[0]


@pytest.mark.parametrize("kind", ["text", "mixed"])
def test_the_check_at_the_start_passes_and_leaves_the_weights_unchanged(subject, prompts_of, kind):
    before = {name: p.detach().clone() for name, p in subject.policy.parameters().items()}
    prompts = prompts_of(subject.policy, kind)
    found = check(subject, prompts, 0.7)
    require_agreement(found, subject.atol, "it")
    assert found.stale > 20 * subject.atol
    assert all(torch.equal(before[name], p) for name, p in subject.policy.parameters().items())
    assert gap(subject, prompts, subject.sample(prompts)) < subject.atol


@pytest.fixture
def broken(wide_folder: Path) -> Callable[[type[CopySampler]], Subject]:
    policy = Policy.load(wide_folder)
    return lambda kind: Subject(policy, kind(policy, wide_folder), 5e-5)


def test_a_sampler_that_keeps_older_weights_is_refused(broken, prompts_of):
    subject = broken(StaleSampler)
    found = check(subject, prompts_of(subject.policy, "text"))
    assert found.initial.mean < 1e-5
    with pytest.raises(ValueError, match=r"it does not follow the policy.*from those of the weigh"):
        require_agreement(found, 1e-3, "it")
    with pytest.raises(ValueError, match="does not follow the policy"):  # whatever is tolerated
        require_agreement(found, 100.0, "it")


def test_logprobs_at_another_temperature_are_refused_at_their_token(broken, prompts_of):
    subject = broken(AtTemperatureOne)
    prompts = prompts_of(subject.policy, "text")
    require_agreement(check(subject, prompts), 1e-3, "it")
    found = check(subject, prompts, 0.5)
    worst = found.initial
    place = f"completion {worst.completion} of train problem {worst.problem.index}, where it says"
    with pytest.raises(ValueError, match=rf"most at token {worst.token} of {place}.*internal"):
        require_agreement(found, 1e-3, "it")
    request = SamplingRequest(prompts, 2, 0.5, 3)
    groups = subject.sampler.sample([request], 64).completions[0].groups(2)
    named = groups[worst.problem.index][worst.completion]
    assert float(named.logprobs[worst.token]) == pytest.approx(worst.sampler, abs=1e-6)
    own = scored(subject.policy, [prompts[worst.problem.index]], [[named]], 0.5)
    assert float(own[worst.token]) == pytest.approx(worst.policy, abs=1e-5)
    assert abs(worst.sampler - worst.policy) >= worst.mean


@pytest.fixture
def make_branch() -> Callable[[bool], Branch]:
    """Build a branch of the embedded base, with its own sampler or with `CopySampler`."""
    config = Config.model_validate(
        {
            "model": {"path": "tiny", "device": "cpu"},
            "domains": {m: {"type": "digits", "modality": m} for m in ("text", "image")},
            "recipe": {"type": "copd", "rounds": 1, "rlvr_steps": 1, "opd_steps": 1},
            "rollout": {"num_prompts": 2, "group_size": 4, "max_completion_tokens": 8},
            "optimizer": {"learning_rate": 1e-2},
        }
    )

    def make(has_copy: bool) -> Branch:
        policy = load_policy("tiny", config.model)
        prompt_cache = PromptCache(load_domains(config.domains), policy.render_all)
        sampler = CopySampler(policy, Path(resolve("tiny"))) if has_copy else None
        return Branch("a", policy, prompt_cache, config, sampler=sampler)

    return make


def test_a_branch_learns_the_same_from_every_sampler(make_branch):
    own, copied = make_branch(False), make_branch(True)
    start = own.weights()
    for step in range(3):
        problems = tuple(ProblemId("image", "train", 2 * step + i) for i in range(2))
        request = RolloutRequest("rlvr/image", problems, 1.0, step, "the test")
        batches = [branch.sample([request])[0] for branch in (own, copied)]
        assert np.array_equal(batches[0].token_ids, batches[1].token_ids)
        rewards = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], dtype=np.float32)
        metrics = [
            branch.update(
                UpdateRequest(
                    (TrainingBatch("image", replace(batch, rewards=rewards)),), "the test"
                )
            )
            for branch, batch in zip((own, copied), batches, strict=True)
        ]
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-3, abs=1e-4)
        assert metrics[1]["rlvr/image/train_inference_mismatch"] < 1e-4
    copied.set_weights(start)
    own.set_weights(start)
    request = EvaluationRequest("image", "validation", 3, 2, 0.7, 8, seed=4)
    answers = [branch.evaluate(request) for branch in (own, copied)]
    assert np.array_equal(answers[0].lengths, answers[1].lengths)
    assert np.array_equal(answers[0].rewards, answers[1].rewards)

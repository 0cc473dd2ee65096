"""Checks before the first step: which teachers and samplers are refused."""

from dataclasses import replace

import pytest
import torch

from copd.branch import Branch
from copd.branch.sampling import InProcessSampler
from copd.config import Config
from copd.engine import LocalEngine
from copd.policy import Policy
from copd.policy.tiny import resolve
from copd.recipes import build_plan
from copd.run.preflight import check_samplers, check_teachers


@pytest.fixture
def ready(make_config, tmp_path):
    config = make_config(tmp_path)
    engine, plan = LocalEngine(config), build_plan(config)
    for name in plan.branches:
        engine.spawn(name, "tiny")
    return engine, config, plan


def test_equal_branches_pass(ready):
    check_teachers(*ready)


def test_a_teacher_with_other_weights_is_refused(ready):
    engine, config, plan = ready
    weights = engine.call(Branch.weights, {"video": None})["video"]
    weights["model.language_model.norm.weight"] += 0.1
    engine.call(Branch.set_weights, {"video": weights})
    with pytest.raises(ValueError, match=r"'video' as a teacher of 'image'.*disagrees by"):
        check_teachers(engine, config, plan)


def test_a_teacher_in_training_mode_with_dropout_is_refused(ready):
    engine, config, plan = ready
    model = engine._branches["text"]._policy.model

    def dropout(_module, _inputs, output):
        return torch.nn.functional.dropout(output, 0.1, training=True)

    model.get_input_embeddings().register_forward_hook(dropout)
    with pytest.raises(ValueError, match=r"'text' as a teacher.*differently twice"):
        check_teachers(engine, config, plan)


def test_a_uniform_teacher_is_refused(ready):
    engine, config, plan = ready
    for name in plan.branches:
        weights = engine.call(Branch.weights, {name: None})[name]
        weights["model.language_model.norm.weight"] *= 0
        engine.call(Branch.set_weights, {name: weights})
    with pytest.raises(ValueError, match="gives every token the same probability"):
        check_teachers(engine, config, plan)


@pytest.fixture
def external(make_config, tmp_path) -> Config:
    """The configuration of `ready` with an external sampler, which is checked."""
    rollout = {"num_prompts": 2, "group_size": 2, "sampler": "vllm", "vllm": {"tolerance": 1e-3}}
    return make_config(tmp_path, model={"path": "tiny"}, rollout=rollout)


def test_samplers_that_agree_with_their_policies_pass(ready, external):
    check_samplers(ready[0], external, ["text"])


def test_a_sampler_with_other_weights_is_refused_by_branch_and_domain(ready, external):
    engine, config, plan = ready
    branch = engine._branches["image"]
    other = Policy.load(resolve("tiny"))
    with torch.no_grad():
        norm = other.parameters()["model.visual.merger.norm.weight"]
        norm += 0.5
    branch._sampler = InProcessSampler(replace(branch._forward, policy=other), max_rows=64)
    message = r"vllm for branch 'image' on domain 'image' must be within 0\.001 nats.*most at token"
    on_images = external.model_copy(update={"domains": {"image": external.domains["image"]}})
    with pytest.raises(ValueError, match=message):
        check_samplers(engine, on_images, ["image"])
    check_samplers(engine, config, plan.branches)  # internal samplers are not checked


def test_a_sampler_that_does_not_follow_its_policy_is_refused(ready, external):
    engine = ready[0]
    branch = engine._branches["text"]
    branch._sampler = InProcessSampler(
        replace(branch._forward, policy=Policy.load(resolve("tiny"))), max_rows=64
    )
    message = "vllm for branch 'text' on domain 'text' does not follow the policy"
    with pytest.raises(ValueError, match=message):
        check_samplers(engine, external, ["text"])


def test_vllm_is_refused_where_it_cannot_run_before_anything_is_sampled(external):
    with pytest.raises(ValueError, match=r'rollout\.sampler = "vllm" needs'):
        LocalEngine(external).spawn("text", "tiny")

"""A step with every numeric setting away from its default equals an update computed by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from copd.branch import Branch
from copd.config import BASE as REFERENCE
from copd.config import Config
from copd.config.sections import (
    FullDistill,
    LossConfig,
    MonitorConfig,
    OptimizerConfig,
    SampledDistill,
    TopKDistill,
)
from copd.engine import LocalEngine
from copd.policy import Policy
from copd.policy.tiny import resolve
from copd.recipes import OPD, build_plan
from copd.run.step import Position, needs_reference, take_step
from copd.types import TrainingBatch, UpdateRequest
from tests.branch.reference_update import row_logprobs, update_by_hand

BETAS = {"a": 2.5, "b": 0.5, "c": 0.0}
SUITES = {"a": ["chain"], "b": ["compare"], "c": ["story"]}
BASE: dict[str, Any] = {
    "seed": 11,
    "model": {"path": "tiny", "device": "cpu"},
    "domains": {n: {"type": "digits", "modality": "text", "suites": s} for n, s in SUITES.items()},
    "recipe": {
        "type": "copd",
        "rounds": 1,
        "rlvr_steps": 1,
        "opd_steps": 2,
        "beta": BETAS,
    },
    "rollout": {
        "num_prompts": 3,
        "group_size": 3,
        "max_completion_tokens": 14,
        "max_rows": 4,
        "temperature": 0.7,
    },
    # a large eps keeps the update a smooth function of the gradient
    "optimizer": {
        "learning_rate": 2e-3,
        "eps": 3e-3,
        "betas": (0.7, 0.9),
        "weight_decay": 0.3,
        "max_grad_norm": 0.6,
        "warmup_steps": 3,
        "micro_batch_tokens": 90,
    },
    "loss": {"clip_low": 0.1, "clip_high": 0.15, "advantage_eps": 0.05},
    "monitor": {"overlap_k": 4, "num_probe_tokens": 9, "score_top_k": 6, "probe_top_k": 7},
}

ROWS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "sequence mean": {"loss": {"aggregation": "sequence", "clip_low": 0.05, "clip_high": 0.4}},
    "dual clip": {"loss": {"dual_clip": 1.2, "clip_high": 0.03}},
    "unscaled advantages": {"loss": {"scale_advantages": False, "advantage_eps": 0.5}},
    "clamp": {"distill": {"type": "sampled", "log_ratio_clamp": 0.02}},
    "extrapolation": {"distill": {"type": "sampled", "extrapolation": 1.7}},
    "matched scales": {"distill": {"type": "sampled", "match_scale": True}},
    "control variate": {"distill": {"type": "sampled", "control_variate": True}},
    "top k": {"distill": {"type": "topk", "form": "reverse", "top_k": 5}},
    "top k, jsd": {"distill": {"type": "topk", "form": "jsd", "top_k": 3}},
    "full, forward": {"distill": {"type": "full", "form": "forward"}},
    "full, reverse": {"distill": {"type": "full", "form": "reverse"}},
    "no warmup": {"optimizer": {"warmup_steps": 0, "max_grad_norm": 50.0, "eps": 1e-2}},
    "gradients apart": {"monitor": {"gradient_cosine": True}},
}


def make_config(overrides: dict[str, Any], output_dir: Any) -> Config:
    sections = {**BASE, "output_dir": output_dir}
    for name, values in overrides.items():
        inherited = {} if name == "distill" else BASE.get(name, {})
        sections[name] = {**inherited, **values}
    return Config.model_validate(sections)


def numeric_settings(section: type[BaseModel]) -> dict[str, Any]:
    """The settings that change numbers: not switches of what is shown, not names."""
    left_out = {"every", "num_problems", "num_samples", "type"}
    return {n: f.default for n, f in section.model_fields.items() if n not in left_out}


@pytest.mark.parametrize(
    "section",
    [OptimizerConfig, LossConfig, SampledDistill, TopKDistill, FullDistill, MonitorConfig],
)
def test_the_table_moves_every_setting_off_its_default(section, tmp_path):
    seen: dict[str, set[Any]] = {name: set() for name in numeric_settings(section)}
    for overrides in ROWS.values():
        config = make_config(overrides, tmp_path)
        for part in (config.optimizer, config.loss, config.distill, config.monitor):
            if isinstance(part, section):
                for name in seen:
                    seen[name].add(getattr(part, name))
    same = [n for n, default in numeric_settings(section).items() if seen[n] <= {default}]
    assert same == []


@pytest.fixture(scope="module")
def moved_weights() -> dict[str, dict[str, torch.Tensor]]:
    """Three policies some way from the base, so that teachers and students differ."""
    policy = Policy.load(resolve("tiny"))
    found = {}
    for number, name in enumerate(SUITES):
        generator = torch.Generator().manual_seed(number)
        found[name] = {
            key: p.detach() + 0.01 * torch.randn(p.shape, generator=generator)
            for key, p in policy.parameters().items()
        }
    return found


@pytest.mark.parametrize("name", ROWS)
def test_a_step_equals_one_computed_by_hand(name, moved_weights, tmp_path):
    config = make_config(ROWS[name], tmp_path)
    engine = LocalEngine(config)
    for branch, weights in moved_weights.items():
        engine.spawn(branch, "tiny")
        engine.call(Branch.set_weights, {branch: weights})
    if needs_reference(config):
        engine.spawn(REFERENCE, "tiny", frozen=True)
    plan = build_plan(config)
    mutual = plan.stages[1]
    before = engine.call(Branch.weights, dict.fromkeys(moved_weights))
    result = take_step(engine, config, Position(2, 1, mutual))
    after = engine.call(Branch.weights, dict.fromkeys(moved_weights))

    plain = Policy.load(resolve("tiny"))
    banned = plain.banned
    cache = engine._prompt_cache
    assert cache is not None
    for branch in moved_weights:
        batches = result.batches[branch]
        actions = mutual.actions_of(branch)
        assert [b.beta for b in batches if b.teacher] == [
            BETAS[branch] for a in actions if isinstance(a, OPD)
        ]
        prompts = [[p.input_ids for p in cache.prompts(b.rollouts.problems)] for b in batches]
        set_weights(plain, before[branch])
        check_sampling(plain, batches, prompts, actions, config)
        check_teachers(plain, batches, prompts, actions, before, config)
        moments, start = dict[str, Any](), before[branch]
        set_weights(plain, before[branch])
        for step in range(2):
            expected, norm = update_by_hand(plain.model, prompts, batches, config, banned, moments)
            metrics = result.metrics[branch]
            if step:  # the same batches again: now the ratio is not 1
                request = UpdateRequest(batches, "the test")
                metrics = engine.call(Branch.update, {branch: request})[branch]
                after[branch] = engine.call(Branch.weights, {branch: None})[branch]
            assert metrics["update/grad_norm"] == pytest.approx(norm, rel=2e-3)
            check_weights(after[branch], expected, start)
            start = after[branch]
            set_weights(plain, after[branch])
            batches = shifted(batches)


def shifted(batches: tuple[TrainingBatch, ...]) -> tuple[TrainingBatch, ...]:
    """The batches with other old log-probabilities, so that every clip has tokens to clip."""
    shifts = np.random.default_rng(0)
    return tuple(
        replace(
            batch,
            rollouts=replace(
                batch.rollouts,
                logprobs=batch.rollouts.logprobs
                + shifts.uniform(-0.6, 0.6, len(batch.rollouts.logprobs)).astype(np.float32),
            ),
        )
        for batch in batches
    )


def set_weights(policy: Policy, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for key, parameter in policy.parameters().items():
            parameter.copy_(weights[key])


def check_weights(found, expected, before) -> None:
    moved = torch.cat([(expected[n] - before[n]).flatten() for n in expected])
    error = torch.cat([(found[n] - expected[n]).flatten() for n in expected])
    assert moved.norm() > 0
    assert error.norm() <= 3e-3 * moved.norm()


@torch.no_grad()
def check_sampling(policy, batches, prompts, actions, config) -> None:
    """Sizes as configured; native batches at the configured temperature, cross batches at 1."""
    for batch, own, action in zip(batches, prompts, actions, strict=True):
        rollouts = batch.rollouts
        assert rollouts.rewards.shape == (config.rollout.num_prompts, config.rollout.group_size)
        assert rollouts.lengths.max() <= config.rollout.max_completion_tokens
        temperature = 1.0 if isinstance(action, OPD) else config.rollout.temperature
        ends = np.cumsum(rollouts.lengths)
        for row, end in enumerate(ends):
            tokens = slice(int(end - rollouts.lengths[row]), int(end))
            ids = rollouts.token_ids[tokens]
            full = row_logprobs(
                policy.model, own[row // config.rollout.group_size], ids, policy.banned
            )
            at = (full / temperature).log_softmax(-1)
            chosen = at.gather(-1, torch.from_numpy(ids.astype(np.int64))[:, None])[:, 0]
            np.testing.assert_allclose(rollouts.logprobs[tokens], chosen.numpy(), atol=2e-4)


@torch.no_grad()
def check_teachers(policy, batches, prompts, actions, before, config) -> None:
    """Teachers score with their own weights, at temperature 1, as many tokens as configured."""
    for batch, own, action in zip(batches, prompts, actions, strict=True):
        if not isinstance(action, OPD):
            continue
        rollouts, teacher = batch.rollouts, batch.teacher
        num_tokens = len(rollouts.token_ids)
        set_weights(policy, before[action.teacher])
        ends = np.cumsum(rollouts.lengths)
        full = torch.cat(
            [
                row_logprobs(
                    policy.model,
                    own[row // config.rollout.group_size],
                    rollouts.token_ids[end - rollouts.lengths[row] : end],
                    policy.banned,
                )
                for row, end in enumerate(ends)
            ]
        )
        chosen = full.gather(-1, torch.from_numpy(rollouts.token_ids.astype(np.int64))[:, None])
        np.testing.assert_allclose(teacher.logprobs, chosen[:, 0].numpy(), atol=2e-4)
        is_sampled = config.distill.type == "sampled"
        if is_sampled and not config.distill.control_variate:
            size, k = min(config.monitor.num_probe_tokens, num_tokens), config.monitor.score_top_k
        else:
            size, k = num_tokens, config.monitor.probe_top_k
        if config.distill.type == "topk":
            k = max(config.distill.top_k, config.monitor.overlap_k)
        if config.distill.type == "full":
            k = full.shape[1]
        assert teacher.topk_ids.shape == (size, k)
        best = full[teacher.probes].topk(k).values.numpy()
        np.testing.assert_allclose(teacher.topk_logprobs, best, atol=2e-4)

"""Advantages of batches by hand, and micro-batches that lose nothing."""

import numpy as np
import pytest
import torch

from copd.branch.advantages import token_advantages
from copd.branch.micro_batches import micro_batches
from copd.config import FullDistill, LossConfig, SampledDistill
from copd.types import ProblemId, RolloutBatch, TeacherOutputs, TrainingBatch

LENGTHS = [2, 1, 3, 1, 1, 4]
PROMPT_LENGTHS = [5, 1, 3]


def batch(rewards=((1, 0), (1, 1), (0, 1))):
    num_tokens = sum(LENGTHS)
    return RolloutBatch(
        action="rlvr/text",
        problems=tuple(ProblemId("text", "train", i) for i in range(3)),
        prompt_lengths=np.array(PROMPT_LENGTHS, dtype=np.int32),
        token_ids=np.arange(num_tokens, dtype=np.int32),
        lengths=np.array(LENGTHS, dtype=np.int32),
        logprobs=np.linspace(-2, -1, num_tokens, dtype=np.float32),
        rewards=np.array(rewards, dtype=np.float32),
        is_truncated=np.zeros(6, dtype=bool),
        texts=("",) * 6,
    )


def scores(logprobs):
    nothing = np.zeros((0, 1), dtype=np.int32)
    return TeacherOutputs(
        logprobs=np.asarray(logprobs, dtype=np.float32),
        probes=np.zeros(0, dtype=np.int32),
        topk_ids=nothing,
        topk_logprobs=nothing.astype(np.float32),
    )


def signals(batches, *settings) -> list[torch.Tensor]:
    advantages = token_advantages(batches, *settings)
    assert all(one is not None for one in advantages)
    return [one for one in advantages if one is not None]


@pytest.mark.parametrize("max_tokens", [1, 8, 11, 12, 17, 1000])
def test_micro_batches_cover_everything_once_and_keep_the_limit(max_tokens):
    one = batch()
    parts = list(micro_batches(one, PROMPT_LENGTHS, max_tokens))
    seen = [i for part in parts for i in range(12)[part.tokens]]
    assert seen == list(range(12))
    sizes = [5 + 3, 1 + 4, 3 + 5]
    for part in parts:
        problems = range(3)[part.problems]
        assert list(range(6)[part.rollouts]) == [2 * p + g for p in problems for g in range(2)]
        assert sum(sizes[p] for p in problems) <= max_tokens or len(problems) == 1
    assert len(parts) == {1: 3, 8: 3, 11: 3, 12: 3, 17: 2, 1000: 1}[max_tokens]


def test_a_run_of_problems_is_cut_on_the_axes_of_the_whole_batch():
    one, *others = micro_batches(batch(), PROMPT_LENGTHS, 1)
    run = list(micro_batches(batch(), PROMPT_LENGTHS[1:], 1, first=1))
    assert [(part.rollouts, part.tokens) for part in run] == [
        (part.rollouts, part.tokens) for part in others
    ]
    assert [part.problems for part in run] == [slice(0, 1), slice(1, 2)]
    assert [*micro_batches(batch(), PROMPT_LENGTHS[:1], 1)] == [one]
    assert [*micro_batches(batch(), [], 1, first=1)] == []


def test_reward_advantages_are_spread_over_tokens():
    [advantages] = signals([TrainingBatch("text", batch())], LossConfig(), SampledDistill())
    up = 0.5 / (np.sqrt(0.5) + 1e-6)
    expected = [up, up, -up, 0, 0, 0, 0, -up, up, up, up, up]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)


def test_distillation_advantages_are_beta_times_delta_and_ignore_the_reward():
    teacher = batch().logprobs + np.array([0.5] * 6 + [-1.0] * 6, dtype=np.float32)
    training = TrainingBatch("text", batch(), scores(teacher), beta=2.0)
    [advantages] = signals([training], LossConfig(), SampledDistill())
    assert advantages.tolist() == pytest.approx([1.0] * 6 + [-2.0] * 6, abs=1e-6)
    [clamped] = signals([training], LossConfig(), SampledDistill(log_ratio_clamp=0.75))
    assert clamped.tolist() == pytest.approx([1.0] * 6 + [-1.5] * 6, abs=1e-6)


def test_an_equal_teacher_gives_no_signal():
    training = TrainingBatch("text", batch(), scores(batch().logprobs))
    [advantages] = signals([training], LossConfig(), SampledDistill())
    assert advantages.abs().max() == 0


def test_extrapolation_goes_beyond_the_teacher():
    teacher = batch().logprobs + np.float32(0.5)
    base = batch().logprobs - np.float32(1.0)
    training = TrainingBatch("text", batch(), scores(teacher), ref_logprobs=base)
    [advantages] = signals([training], LossConfig(), SampledDistill(extrapolation=1.5))
    assert advantages.tolist() == pytest.approx([0.5 + 0.5 * 1.5] * 12, abs=1e-6)


def test_matched_scales_leave_native_lessons_and_beta_alone():
    loud = batch().logprobs + np.tile(np.array([4.0, -4.0], dtype=np.float32), 6)
    soft = batch().logprobs + np.tile(np.array([1.0, -1.0], dtype=np.float32), 6)
    batches = [
        TrainingBatch("text", batch()),
        TrainingBatch("image", batch(), scores(loud)),
        TrainingBatch("video", batch(), scores(soft), beta=3.0),
    ]
    plain = signals(batches, LossConfig(), SampledDistill())
    matched = signals(batches, LossConfig(), SampledDistill(match_scale=True))
    together = np.sqrt((16 + 1) / 2)
    assert torch.equal(matched[0], plain[0])
    assert matched[1].abs().tolist() == pytest.approx([together] * 12, rel=1e-5)
    assert matched[2].abs().tolist() == pytest.approx([3 * together] * 12, rel=1e-5)


def test_direct_losses_need_no_advantage():
    batches = [
        TrainingBatch("text", batch()),
        TrainingBatch("text", batch(), scores(batch().logprobs)),
    ]
    native, cross = token_advantages(batches, LossConfig(), FullDistill())
    assert native is not None
    assert cross is None

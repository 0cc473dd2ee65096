"""Planned lengths really happen, on our side and in `generate`."""

from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ours
from benchmarks.cases import CASES, Case, planned_lengths
from benchmarks.lengths import PlannedGenerate, banned_tokens, end_as_planned
from benchmarks.repeated import Repeated, generate
from benchmarks.turns import Turns
from copd.policy.sampling import sampler
from copd.recipes import Stage
from copd.run.step import Position, take_step

END = 2
SMALL = replace(CASES["ragged"], num_prompts=4, group_size=3, lengths=(2, 12))


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark replaces a function of the sampler for a whole process."""
    monkeypatch.setattr(sampler, "full_logprobs", sampler.full_logprobs)


def turns() -> Turns:
    return Turns(Pipe()[1])


def test_the_end_is_impossible_before_its_turn_and_certain_at_it() -> None:
    scores = torch.full((3, 4), 0.25).log()
    forced = end_as_planned(scores, np.array([3, 5, 3]), 2, END, 5)
    assert forced.exp()[0].tolist() == [0, 0, 1, 0]
    assert forced[1, END] == -torch.inf
    assert forced[1, 0] == scores[1, 0]
    assert forced.exp()[2].tolist() == [0, 0, 1, 0]


def test_the_longest_is_cut_off_and_does_not_end() -> None:
    forced = end_as_planned(torch.zeros(1, 4), np.array([5]), 4, END, 5)
    assert forced[0].tolist() == [0, 0, -torch.inf, 0]


@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        replace(SMALL, work="mutual", num_prompts=8),
        replace(SMALL, work="distill", group_size=1, lengths=(7, 7)),
    ],
    ids=["one batch", "two batches", "groups of one, equal"],
)
def test_our_sampler_keeps_to_the_plan(case: Case, miniature: Path) -> None:
    engine = ours.TimedEngine(case, miniature, turns())
    stage = Stage("measured", 1, ours.actions(case))
    for step in range(2):
        planned = planned_lengths(case, step)
        engine.plan.plan(planned)
        result = take_step(engine, engine.config, Position(step + 1, 0, stage))
        batches = [batch.rollouts for batch in result.batches[ours.LEARNER]]
        np.testing.assert_array_equal(np.concatenate([b.lengths for b in batches]), planned)
        is_truncated = np.concatenate([b.is_truncated for b in batches])
        np.testing.assert_array_equal(is_truncated, planned == case.lengths[1])
        if case.work == "grpo":
            assert batches[0].rewards.std(axis=1).max() > 0


def test_generate_keeps_to_the_plan_and_samples_no_control_token(miniature: Path) -> None:
    side = Repeated(SMALL, miniature)
    side.sample(0)
    for tokens, length in zip(side.completions, side.lengths.tolist(), strict=True):
        ends = (tokens == side.tokenizer.eos_token_id).nonzero()[:, 0].tolist()
        assert ends == ([length - 1] if length < SMALL.lengths[1] else [])
        assert not side.banned[tokens[:length]].any()
    assert set(side.banned.nonzero()[:, 0].tolist()) == {0, 1, 3, 4, 5, 6}
    banned = banned_tokens(side.tokenizer, len(side.tokenizer) + 2)
    assert banned.tolist() == [*side.banned.tolist(), True, True]
    free = PlannedGenerate(side.lengths.numpy(), END, 12, torch.zeros_like(side.banned))
    assert generate(side.model, side.rows, max_tokens=12, processor=free).shape == (12, 12)


def test_both_ways_to_do_a_mutual_step_run_and_answer(miniature: Path) -> None:
    case = replace(SMALL, work="mutual", num_prompts=4)
    for play in (ours.take_turns, ours.take_turns_in_parts):
        parent, child = Pipe()
        parent.send({"step": 0, "count_flops": False})
        parent.send(None)
        play(case, miniature, Turns(child))
        ready, answer = parent.recv(), parent.recv()
        assert ready["threads"] == torch.get_num_threads()
        assert answer["tokens"] == planned_lengths(case, 0).sum()
        assert set(answer["phases"]) == {"sampling", "scoring", "update", "optimizer"}
        assert answer["phases"]["scoring"][0] > 0

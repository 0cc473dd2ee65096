"""Planned lengths really happen, on our side and in `generate`."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ours
from benchmarks.cases import CASES, Case, planned_lengths
from benchmarks.lengths import PlannedGenerate, control_tokens, end_as_planned
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
    return Turns(io.StringIO(), io.StringIO())


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
        batches = [lesson.batch for lesson in result.lessons[ours.LEARNER]]
        np.testing.assert_array_equal(np.concatenate([b.lengths for b in batches]), planned)
        is_truncated = np.concatenate([b.is_truncated for b in batches])
        np.testing.assert_array_equal(is_truncated, planned == case.lengths[1])
        if case.work == "grpo":
            assert batches[0].rewards.std(axis=1).max() > 0


def test_generate_keeps_to_the_plan_and_samples_no_control_token(miniature: Path) -> None:
    side = Repeated(SMALL, miniature, micro_batch=0)
    rows, completions, lengths = side.sample(0)
    for tokens, length in zip(completions, lengths, strict=True):
        ends = (tokens == side.end).nonzero()[:, 0].tolist()
        assert ends == ([length - 1] if length < SMALL.lengths[1] else [])
        assert not torch.isin(tokens[:length], torch.tensor(side.control)).any()
    assert set(control_tokens(side.tokenizer)) == {0, 1, 3, 4, 5, 6}
    free = PlannedGenerate(lengths.numpy(), side.end, 12, [])
    assert generate(side.model, rows, max_tokens=12, processor=free).shape == (12, 12)


def test_both_ways_to_do_a_mutual_step_run_and_answer(miniature: Path) -> None:
    case = replace(SMALL, work="mutual", num_prompts=4)
    for play in (ours.take_turns, ours.take_turns_in_parts):
        words = [{"step": 0, "count_flops": False}, {"stop": True}]
        heard, said = io.StringIO("\n".join(map(json.dumps, words))), io.StringIO()
        play(case, miniature, Turns(heard, said))
        ready, answer = map(json.loads, said.getvalue().splitlines())
        assert ready["ready"]
        assert answer["tokens"] == planned_lengths(case, 0).sum()
        assert set(answer["phases"]) == {"sampling", "scoring", "update", "optimizer"}
        assert answer["phases"]["scoring"][0] > 0

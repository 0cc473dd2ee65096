"""The cost of our decode steps with all rows of a case, and with a single row: the fixed cost."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.cases import Case, Shapes
from benchmarks.turns import Turns
from copd.policy import Draw, Policy, SharedPrefix
from copd.policy.sampling.sampler import sample_tokens

ALL_ROWS, ONE_ROW = "all rows", "one row"
NUM_STEPS = 24


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int = 0) -> None:
    """Decode `NUM_STEPS` tokens for every completion of a step, then for a single one, per turn.

    Drawing is included, reading the prompts is not. No completion ends early.
    """
    turns.start_memory()
    policy = Policy.load(folder)
    problems = Shapes(case.domains[0], case.media).problems(0, case.num_prompts)
    with torch.no_grad():
        prefix = policy.read(policy.render_all([problem.messages for problem in problems]))
    turns.ready()
    while turns.next():
        with turns.phase(ALL_ROWS):
            _decode(policy, prefix, case.group_size)
        with turns.phase(ONE_ROW):
            _decode(policy, prefix.select(slice(0, 1)), 1)


def _decode(policy: Policy, prefix: SharedPrefix, group_size: int) -> None:
    draw = Draw(prefix, group_size, 1.0, torch.Generator().manual_seed(0))
    ends = frozenset[int]()
    sample_tokens(policy.backbone, [draw], max_tokens=NUM_STEPS, banned=policy.banned, ends=ends)

"""What a decode step of ours costs with all rows of a case, and with one: its fixed cost.

Knows no reference and no update.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.cases import Case, Shapes
from benchmarks.turns import Turns
from copd.policy import Draw, Policy, SharedPrefix
from copd.policy.sampling.sampler import sample_tokens

ALL_ROWS, ONE_ROW = "all rows", "one row"
NUM_STEPS = 24


def take_turns(case: Case, folder: Path, turns: Turns) -> None:
    """Per turn `NUM_STEPS` tokens for every completion of a step, then for a single one.

    Drawing included, reading the prompts not; nobody ends early.
    """
    turns.model_comes_now()
    policy = Policy.load(folder)
    domain = Shapes(case.domains[0], case.media)
    problems = [domain.problem("train", index) for index in range(case.num_prompts)]
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
    nobody = frozenset[int]()
    sample_tokens(policy.backbone, [draw], max_tokens=NUM_STEPS, banned=policy.banned, ends=nobody)

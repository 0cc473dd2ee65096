"""A few rollouts of every step, kept for a person to read: what was asked, answered, rewarded and
signalled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from copd.types import TrainingBatch


def rollout_records(
    step: int, lessons: Mapping[str, tuple[TrainingBatch, ...]]
) -> list[dict[str, Any]]:
    """The first group of each batch; of a scored one with the teacher's `delta_t` per token."""
    return [_record(step, branch, lesson) for branch, own in lessons.items() for lesson in own]


def _record(step: int, branch: str, lesson: TrainingBatch) -> dict[str, Any]:
    batch, group_size = lesson.batch, lesson.batch.rewards.shape[1]
    ends = np.cumsum(batch.lengths[:group_size])
    spans = [
        slice(int(end - n), int(end))
        for end, n in zip(ends, batch.lengths[:group_size], strict=True)
    ]
    delta = None if lesson.scores is None else lesson.scores.logprobs - batch.logprobs
    return {
        "step": step,
        "branch": branch,
        "action": batch.action,
        "problem": asdict(batch.problems[0]),
        "rollouts": [
            {
                "text": batch.texts[g],
                "reward": float(batch.rewards[0, g]),
                "token_ids": batch.token_ids[span].tolist(),
                **({} if delta is None else {"delta": [round(float(d), 4) for d in delta[span]]}),
            }
            for g, span in enumerate(spans)
        ],
    }

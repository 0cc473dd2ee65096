"""Records of rollouts.jsonl: a few rollouts of every step for people to read."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from copd.types import TrainingBatch


def rollout_records(
    step: int, batches: Mapping[str, tuple[TrainingBatch, ...]]
) -> list[dict[str, Any]]:
    """Return the first group of each batch, with the teacher's `delta_t` per token if scored."""
    return [_record(step, branch, batch) for branch, own in batches.items() for batch in own]


def _record(step: int, branch: str, batch: TrainingBatch) -> dict[str, Any]:
    rollouts = batch.rollouts
    delta = None if batch.teacher is None else batch.teacher.logprobs - rollouts.logprobs
    records, end = [], 0
    for index, reward in enumerate(rollouts.rewards[0]):
        start, end = end, end + int(rollouts.lengths[index])
        record = {
            "text": rollouts.texts[index],
            "reward": float(reward),
            "token_ids": rollouts.token_ids[start:end].tolist(),
        }
        if delta is not None:
            record["delta"] = [round(float(d), 4) for d in delta[start:end]]
        records.append(record)
    return {
        "step": step,
        "branch": branch,
        "action": rollouts.action,
        "problem": asdict(rollouts.problems[0]),
        "rollouts": records,
    }

"""The plain path computes what the packed one does, and learns."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cases import CASES
from benchmarks.repeated import Repeated, Rows, repeated_logprobs
from copd.functional import token_logprobs
from copd.policy import Policy
from copd.types import Image, Message, Text, Video
from tests.packing import flat


def parts_of(kind: str, size: int) -> tuple[Text | Image | Video, ...]:
    rng = np.random.default_rng(size)
    question = Text("?" * size)
    if kind == "image":
        return (Image(rng.integers(0, 256, (16 * size, 32, 3), dtype=np.uint8)), question)
    if kind == "video":
        return (Video(rng.integers(0, 256, (2 * size, 32, 32, 3), dtype=np.uint8), 2.0), question)
    return (question,)


@pytest.mark.parametrize("kind", ["text", "image", "video"])
def test_log_probabilities_equal_those_of_the_packed_passes(kind: str, miniature: Path) -> None:
    policy = Policy.load(miniature)
    prompts = [policy.render([Message("user", parts_of(kind, size))]) for size in (2, 3)]
    rng = np.random.default_rng(0)
    lengths = np.array([3, 5, 1, 4])
    drawn = [rng.integers(10, 100, size=n).astype(np.int32) for n in lengths]
    with torch.no_grad():
        states = policy.score(prompts, *flat([drawn[:2], drawn[2:]]))
        packed, _ = token_logprobs(
            states.hidden, policy.head, states.token_ids, banned=policy.banned
        )
        padded = torch.zeros(4, 5, dtype=torch.int64)
        for row, ids in zip(padded, drawn, strict=True):
            row[: len(ids)] = torch.from_numpy(ids)
        rows = Rows.repeat(prompts, 2, 0)
        plain = repeated_logprobs(
            policy.model, rows, padded, torch.from_numpy(lengths), policy.banned
        )
    own = torch.arange(5) < torch.from_numpy(lengths)[:, None]
    torch.testing.assert_close(plain[own], packed, atol=1e-5, rtol=0)


def test_selected_rows_have_their_own_pixels(miniature: Path) -> None:
    policy = Policy.load(miniature)
    prompts = [policy.render([Message("user", parts_of("image", size))]) for size in (2, 3)]
    rows = Rows.repeat(prompts, 2, 0).select(slice(2, 4))
    assert rows.media["image_grid_thw"].tolist() == [[1, 6, 4]] * 2
    expected = prompts[1].media["pixel_values"].repeat(2, 1)
    torch.testing.assert_close(rows.media["pixel_values"], expected, atol=0, rtol=0)


def test_micro_batches_leave_the_update_as_it_is(miniature: Path) -> None:
    case = replace(CASES["video32"], num_prompts=2, group_size=4, lengths=(2, 6))
    after = []
    for micro_batch in (0, 3):
        torch.manual_seed(0)
        side = Repeated(case, miniature, micro_batch=micro_batch)
        side.sample(0)
        before = [p.detach().clone() for p in side.model.parameters()]
        side.update()
        after.append([p.grad for p in side.model.parameters() if p.grad is not None])
        moved = zip(before, side.model.parameters(), strict=True)
        assert any((old != new).any() for old, new in moved)
    assert len(after[0]) == len(after[1]) > 0
    for whole, parts in zip(*after, strict=True):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)

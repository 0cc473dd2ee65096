"""Every random draw of a run, derived from where it happens.

No state, so resume and engines need none.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from copd.types import ProblemId


def derive_seed(*where: str | int) -> int:
    """A 63-bit seed from a place such as (run seed, branch, stage, step, purpose)."""
    digest = hashlib.blake2b(repr(where).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_problems(
    stream: tuple[str | int, ...], domain: str, num_problems: int, *, start: int, count: int
) -> tuple[ProblemId, ...]:
    """Places `start` to `start + count` of an endless stream, shuffled anew every epoch."""
    places = range(start, start + count)
    return tuple(
        ProblemId(
            domain,
            "train",
            int(_epoch(stream, place // num_problems, num_problems)[place % num_problems]),
        )
        for place in places
    )


@lru_cache(maxsize=64)
def _epoch(stream: tuple[str | int, ...], epoch: int, num_problems: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive_seed(*stream, "epoch", epoch)).permutation(num_problems)

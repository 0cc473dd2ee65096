"""Seeds of all random draws of a run, derived from where in the run they happen.

There is no state, so resumed runs and all engines draw the same.
"""

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from copd.types import ProblemId


def derive_seed(*where: str | int) -> int:
    """Hash a place such as (run seed, branch, stage, step, purpose) to a 63-bit seed."""
    digest = hashlib.blake2b(repr(where).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_problems(
    stream: tuple[str | int, ...], domain: str, num_problems: int, *, start: int, count: int
) -> tuple[ProblemId, ...]:
    """Return training problems `start` to `start + count` of an endless stream of epochs."""
    drawn = []
    for place in range(start, start + count):
        epoch, index = divmod(place, num_problems)
        drawn.append(int(_epoch(stream, epoch, num_problems)[index]))
    return tuple(ProblemId(domain, "train", index) for index in drawn)


@lru_cache(maxsize=64)
def _epoch(stream: tuple[str | int, ...], epoch: int, num_problems: int) -> NDArray[np.int64]:
    return np.random.default_rng(derive_seed(*stream, "epoch", epoch)).permutation(num_problems)

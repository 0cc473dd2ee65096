"""Nested completions, as tests write them, in the packed form that policies score."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def flat(
    groups: Sequence[Sequence[NDArray[np.int32]]],
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[int]]:
    """Token ids, lengths and group sizes of completions nested by prompt."""
    rows = [row for group in groups for row in group]
    token_ids = np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32)
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    return token_ids, lengths, [len(group) for group in groups]

"""Long lists with few distinct entries, such as an accuracy per problem, as short JSON values.

Knows not what they mean.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pack(entries: Sequence[Any]) -> dict[str, Any]:
    """The distinct entries in order of appearance, and which of them each entry is: 16-bit numbers,
    compressed, in base64."""
    number = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}
    if len(number) > 2**16:
        raise ValueError(
            f"a packed list must have at most {2**16:,} distinct entries: got {len(number):,}. "
            "Evaluate fewer samples per problem."
        )
    which = np.array([number[entry] for entry in entries], dtype="<u2")
    packed = base64.b64encode(zlib.compress(which.tobytes(), 9)).decode("ascii")
    return {"distinct": list(number), "packed": packed}


def unpack(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inverse of `pack`."""
    which = np.frombuffer(zlib.decompress(base64.b64decode(value["packed"])), dtype="<u2")
    distinct = value["distinct"]
    return tuple(distinct[index] for index in which.tolist())

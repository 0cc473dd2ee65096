"""How arrays lie in a message: flat, and integers no wider than the numbers in them need.

Knows neither who sends it nor over what.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def reduce_array(value: object) -> Any:
    """What pickle shall write in the place of a tensor or of an array of integers.

    Nothing is lost: the receiver gets an array of the same type and numbers of its own. For any
    other value the answer is pickle's "as usual".
    """
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return torch.from_numpy, (value.detach().cpu().numpy(),)
    if isinstance(value, np.ndarray) and (small := narrow(value)).dtype != value.dtype:
        return _widen, (small, value.dtype.str)
    return NotImplemented


def narrow(array: NDArray[Any]) -> NDArray[Any]:
    """The same integers in the smallest unsigned type that holds them; other arrays as they are.

    Token ids of a small vocabulary and lengths take a byte or two of their four.
    """
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0:
        return array
    smallest = np.min_scalar_type(int(array.max()))
    return array.astype(smallest) if smallest.itemsize < array.itemsize else array


def _widen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    return array.astype(dtype)

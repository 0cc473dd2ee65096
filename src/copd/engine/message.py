"""Compact pickling of arrays: flat, and integers no wider than their values need."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def reduce_array(value: object) -> Any:
    """Reduce a float32 tensor or an array of integers for pickle, and leave other values alone.

    Lossless: the receiver gets its own array of the same type and values.
    """
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return torch.from_numpy, (value.detach().cpu().numpy(),)
    if isinstance(value, np.ndarray) and (small := narrow(value)).dtype != value.dtype:
        return _widen, (small, value.dtype.str)
    return NotImplemented


def narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Cast natural numbers to the smallest unsigned type; return other arrays as they are.

    Token ids of a small vocabulary and lengths take one or two bytes instead of four.
    """
    if array.dtype.kind not in "iu" or not array.size or array.min() < 0:
        return array
    smallest = np.min_scalar_type(int(array.max()))
    return array.astype(smallest) if smallest.itemsize < array.itemsize else array


def _widen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    return array.astype(dtype)

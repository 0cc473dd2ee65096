"""Arrays in messages arrive as they were sent, and small numbers take few bytes."""

import pickle
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch

from copd.engine.message import narrow, reduce_array


class Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return reduce_array(obj)


def message(value: object) -> bytes:
    buffer = BytesIO()
    Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("numbers", "dtype", "stored"),
    [
        ([0, 255], np.int32, np.uint8),
        ([0, 256], np.int32, np.uint16),
        ([0, 65_536], np.int32, np.int32),
        ([0, 65_536], np.int64, np.uint32),
        ([0, 2**32], np.int64, np.int64),
        ([-1, 127], np.int32, np.int32),
        ([7, 9], np.uint8, np.uint8),
        ([], np.int32, np.int32),
        ([0.5, 1.0], np.float32, np.float32),
        ([True, False], np.bool_, np.bool_),
    ],
)
def test_integers_take_the_smallest_type_that_holds_them(numbers, dtype, stored):
    array = np.array(numbers, dtype=dtype)
    assert narrow(array).dtype == stored
    arrived = pickle.loads(message(array))
    assert arrived.dtype == dtype and arrived.tolist() == array.tolist()
    assert arrived.flags.writeable


def test_shapes_survive_and_small_numbers_take_a_byte():
    rows = np.arange(240, dtype=np.int32).reshape(12, 20)
    for array in (rows, rows.T, rows[::2, ::3], np.asfortranarray(rows)):
        assert np.array_equal(pickle.loads(message(array)), array)
    many = np.full(10_000, 127, dtype=np.int32)
    assert len(message(many)) < 10_000 + 200


def test_an_array_that_is_sent_twice_arrives_as_one():
    ids = np.arange(5, dtype=np.int32)
    one, other = pickle.loads(message((ids, ids)))
    assert one is other and one.tolist() == [0, 1, 2, 3, 4]


def test_tensors_arrive_with_their_bits():
    weights = torch.tensor([0.1, -torch.inf, 1e-42], requires_grad=True)
    arrived = pickle.loads(message({"w": weights}))["w"]
    assert torch.equal(arrived, weights.detach()) and not arrived.requires_grad

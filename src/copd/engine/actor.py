"""The inside of a Ray actor, and the messages in which it is asked and answers.

Knows no cluster, and of a branch only that a host has it.
"""

from __future__ import annotations

import io
import pickle
import traceback
from dataclasses import dataclass
from typing import Any

from ray.cloudpickle.cloudpickle import Pickler as CloudPickler

from copd.engine.host import Host
from copd.engine.message import reduce_array


@dataclass(frozen=True)
class Failure:
    """What a branch raised, to be raised where it was asked."""

    error: Exception


class Actor:
    """A host that is asked by messages."""

    def __init__(self) -> None:
        self._host = Host()

    def serve(self, message: bytes) -> bytes:
        """Does what a message says; an error is an answer, so that Ray adds nothing to it."""
        try:
            work, arguments = pickle.loads(message)
            return pack(work(self._host, *arguments))
        except Exception as error:
            return _pack_failure(error)


def pack(value: object) -> bytes:
    """A message: one flat buffer in the object store, arrays in it as they lie in memory.

    Ray's own way would share memory and hand out arrays that cannot be written to; local branches
    get ordinary ones.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Pickler(CloudPickler):
    """Functions by name or by value; tensors and integers as `reduce_array` has them."""

    def reducer_override(self, obj: Any) -> Any:
        as_flat = reduce_array(obj)
        return super().reducer_override(obj) if as_flat is NotImplemented else as_flat


def _pack_failure(error: Exception) -> bytes:
    """Errors for users stay as they are; a bug tells where it happened."""
    if not isinstance(error, ValueError | ArithmeticError | OSError):
        error.add_note(f"raised in the process of a branch:\n{traceback.format_exc()}")
    try:
        message = pack(Failure(error))
        pickle.loads(message)
        return message
    except Exception:  # an error that cannot travel
        return pack(Failure(RuntimeError("".join(traceback.format_exception(error)))))

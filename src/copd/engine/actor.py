"""The Ray actor around a host, and the messages it exchanges with the engine."""

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
    """An exception raised in an actor, to be raised again in the engine."""

    error: Exception


class Actor:
    """A host that serves pickled requests."""

    def __init__(self) -> None:
        self._host = Host()

    def serve(self, message: bytes) -> bytes:
        """Run one request; errors are returned, so that Ray adds nothing to them."""
        try:
            method, arguments = pickle.loads(message)
            return pack(method(self._host, *arguments))
        except Exception as error:
            return _pack_failure(error)


def pack(value: object) -> bytes:
    """Pickle a value into one flat buffer.

    Ray's own serialization shares memory and yields read-only arrays; these are ordinary ones, as
    on the local engine.
    """
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


class _Pickler(CloudPickler):
    def reducer_override(self, obj: Any) -> Any:
        reduced = reduce_array(obj)
        return super().reducer_override(obj) if reduced is NotImplemented else reduced


def _pack_failure(error: Exception) -> bytes:
    """Pack an exception, with its traceback as a note if it is a bug and no message to the user."""
    if not isinstance(error, ValueError | ArithmeticError | OSError):
        error.add_note(f"raised in the process of a branch:\n{traceback.format_exc()}")
    try:
        message = pack(Failure(error))
        pickle.loads(message)
        return message
    except Exception:  # the exception cannot be pickled
        return pack(Failure(RuntimeError("".join(traceback.format_exception(error)))))

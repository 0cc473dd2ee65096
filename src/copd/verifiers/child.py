"""The program of a worker process, which answers calls from its standard input, line by line.

It is run by its path, so that it starts without copd and its dependencies. It imports only the
standard library until a handler needs more.
"""

import difflib
import importlib
import json
import logging
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

Handler = Callable[..., Any]

NUM_WAITING = 3
"""Wall-clock limit of a call, as a multiple of its limit of processor time."""

_ALLOWED = ("os.listdir", "os.scandir", "os.walk", "os.fwalk")
_FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "tempfile.", "signal.")


def math_handler() -> Handler:
    """Build the handler of `reward`, `extract_answer` and `reference_error` by math-verify."""
    sympy_random = importlib.import_module("sympy.core.random")
    math_verify = importlib.import_module("math_verify")
    logging.disable(logging.CRITICAL)

    def parsed(text: str) -> list[Any]:
        return math_verify.parse(text, parsing_timeout=0)

    def reference(answer: str) -> list[Any]:
        """Parse a reference: as it is if marked as LaTeX, else as a formula and an expression."""
        if "$" in answer or "\\boxed" in answer or "\\(" in answer:
            return parsed(answer)
        return [*parsed(f"${answer}$"), *parsed(answer)]

    def call(method: str, text: str, answer: str) -> Any:
        sympy_random.seed(0)
        if method == "reference_error":
            return not reference(answer)
        if method == "extract_answer":
            return str(next(iter(parsed(text)), ""))
        return float(math_verify.verify(reference(answer), parsed(text), timeout_seconds=0))

    call("reward", "$\\frac{1}{2}$", "0.5")  # so that lazy imports happen now
    return call


def function_handler(name: str) -> Handler:
    """Build the handler that calls the user's function."""
    module, _, path = name.partition(":")
    function: Any = importlib.import_module(module)
    for part in path.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{name} is not a function but {function!r:.80}")

    def call(text: str, answer: str) -> float:
        random.seed(0)
        reward = function(text, answer)
        if not isinstance(reward, (int, float)) or not 0 <= reward <= 1:
            raise ValueError(f"it must return a number from 0 to 1: got {reward!r:.80}")
        return float(reward)

    return call


def gym_handler(
    datasets: dict[str, dict[str, Any]], first: dict[str, int], size: dict[str, int]
) -> Handler:
    """Build the handler of `problem` and `reward`, by generator, split and position."""
    reasoning_gym = importlib.import_module("reasoning_gym")
    known = importlib.import_module("reasoning_gym.factory").DATASETS

    def build(name: str, split: str) -> Any:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0)
            raise ValueError(f"reasoning-gym has no {name!r}, it has {', '.join(near)}")
        try:
            parameters = {**datasets[name], "seed": first[split], "size": size[split]}
            return reasoning_gym.create_dataset(name, **parameters)
        except Exception as error:
            raise ValueError(f"generator {name!r}: {error}") from None

    problems = {(name, split): build(name, split) for name in datasets for split in first}

    def call(method: str, name: str, split: str, position: int, text: str = "") -> Any:
        random.seed(0)
        dataset = problems[name, split]
        entry = dataset[position]
        if method == "problem":
            return [str(entry["question"]), "" if entry["answer"] is None else str(entry["answer"])]
        try:
            return min(1.0, max(0.0, float(dataset.score_answer(text, entry))))
        except Exception:  # the scorers evaluate text that a model wrote
            return 0.0

    for name in datasets:
        before = call("problem", name, "train", 0)
        call("reward", name, "train", 1 % size["train"], "1+1")  # so that lazy imports happen now
        if call("problem", name, "train", 0) != before:
            raise ValueError(f"generator {name!r} does not make the same problem twice")
    return call


HANDLERS: dict[str, Callable[..., Handler]] = {
    "math": math_handler,
    "function": function_handler,
    "gym": gym_handler,
}


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse access to files, processes and the network, as an audit hook.

    Libraries that evaluate text would otherwise run whatever a model writes. This stops the plain
    ways and is no sandbox.
    """
    if event == "open":
        _, mode, flags = arguments
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if flags & writes or (mode is not None and set(mode) & set("wax+")):
            raise PermissionError("a verifier does not write files")
    elif event.startswith(_FORBIDDEN) and event not in _ALLOWED:
        raise PermissionError(f"a verifier does not call {event}")


def address_space() -> int:
    """Return the bytes this process has mapped; 0 if the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def answer(handler: Handler, call: list[Any], *, seconds: float, trusted: bool) -> dict[str, Any]:
    """Run a call; the kernel ends the process if it takes too long, also in C code.

    An exception gives None unless the code is the user's own: other code fails on hostile text.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, NUM_WAITING * seconds)
    try:
        return {"value": handler(*call)}
    except (MemoryError, RecursionError):
        return {"value": None}
    except Exception:
        return {"error": traceback.format_exc(limit=-4)} if trusted else {"value": None}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def main() -> None:
    """Report whether the handler could be loaded, then answer calls until the parent ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.dont_write_bytecode = True

    def send(reply: dict[str, Any]) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    spec = json.loads(requests.readline())
    sys.path[:] = spec["path"]
    try:
        handler = HANDLERS[spec["kind"]](**json.loads(spec["settings"]))
    except Exception as error:
        lines = traceback.format_exception(error, limit=-3)
        return send({"error": "".join(lines if spec["kind"] == "function" else lines[-1:])})
    if spec["memory_bytes"] is not None:
        limit = address_space() + spec["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    trusted = spec["kind"] == "function"
    if not trusted:
        sys.addaudithook(guard)
    send({"value": None})
    for line in requests:
        for call in json.loads(line):
            send(answer(handler, call, seconds=spec["seconds"], trusted=trusted))


if __name__ == "__main__":
    main()

"""Verifiers in worker processes: math-verify and the user's function, on hostile input."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from copd.config import FunctionVerifier, MathVerifier, parse_files
from copd.domains.files import load_files
from copd.verifiers import load_verifier
from copd.verifiers.pool import MAX_DEATHS, NUM_CALLS, pool_for

REWARDS = """
import ctypes, os, subprocess, time

def score(text, answer):
    print("this must not disturb anything")
    if text in ("hang", "sleep"):
        open("started_" + text, "w").close()
    if text == "hang":
        while True:
            pass
    if text == "sleep":
        time.sleep(1000)
    if text == "die":
        os._exit(3)
    if text == "crash":
        ctypes.string_at(0)
    if text == "eat":
        return float(len(bytearray(2**40)) > 0)
    if text == "deep":
        return score(text, answer)
    if text == "bug":
        return {}["missing"]
    if text == "much":
        return 2.0
    if text == "pid":
        return os.getpid() / 2**23
    return float(text == answer)

class Rewards:
    half = staticmethod(lambda text, answer: 0.5)

text = "no function"
"""


@pytest.fixture(autouse=True)
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write the user's module to the folder where copd runs; close its workers after the test."""
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    yield
    pool_for.cache_clear()


def function(name: str = "my_rewards:score", seconds: float = 0.3):
    return load_verifier(FunctionVerifier(name=name, timeout_seconds=seconds))


@pytest.mark.parametrize("hostile", ["hang", "sleep", "die", "crash", "eat", "deep"])
def test_a_call_that_breaks_a_limit_earns_nothing_and_harms_no_other(hostile):
    texts = ["7", hostile, "8", "7", hostile, "7"]
    assert function().rewards([(text, "7") for text in texts]) == [1, 0, 0, 1, 0, 1]


def test_a_bug_in_the_function_names_the_completion_and_what_happened():
    with pytest.raises(ValueError, match="failed on 'bug', '7'") as caught:
        function().rewards([("7", "7"), ("bug", "7")])
    assert "KeyError: 'missing'" in str(caught.value)
    assert "my_rewards.py" in str(caught.value) and "Correct the function" in str(caught.value)
    with pytest.raises(ValueError, match=r"a number from 0 to 1: got 2\.0"):
        function().reward("much", "7")
    assert function().reward("7", "7") == 1.0


def test_a_function_that_dies_on_everything_is_a_bug():
    texts = [("die", str(i)) for i in range(MAX_DEATHS)]
    with pytest.raises(ValueError, match=r"exit code 3.*Correct the function"):
        function().rewards(texts)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:score", "No module named 'no_such_module'"),
        ("my_rewards:other", "no attribute 'other'"),
        ("my_rewards:text", "is not a function but 'no function'"),
    ],
)
def test_a_function_that_is_not_there_is_found_before_training(tmp_path, name, reason):
    lines = "\n".join(f'{{"prompt": "{i}?", "answer": "{i}"}}' for i in range(40))
    (tmp_path / "a.jsonl").write_text(lines)
    verifier = f"{{type = 'function', name = '{name}'}}"
    with pytest.raises(ValueError, match=reason) as caught:
        load_files("mine", parse_files("a.jsonl", ["--verifier", verifier])).measured_config()
    assert f"name another one than '{name}'" in str(caught.value)


def test_a_function_may_sit_in_a_class():
    assert function("my_rewards:Rewards.half").reward("x", "y") == 0.5


def test_a_large_batch_is_shared_and_comes_back_in_order():
    pairs = [(str(i % 300), str(i % 7)) for i in range(20 * NUM_CALLS)]
    assert function(seconds=5).rewards(pairs) == [float(t == a) for t, a in pairs]


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path):
    script = (
        "import sys\n"
        "from copd.config import FunctionVerifier\n"
        "from copd.verifiers import load_verifier\n"
        "one = load_verifier(FunctionVerifier(name='my_rewards:score', timeout_seconds=0.5))\n"
        "print(round(one.reward('pid', '') * 2**23), flush=True)\n"
        "one.reward(sys.argv[1], '')\n"
        "input()\n"
    )
    for doing in ("nothing", "hang", "sleep"):
        parent = subprocess.Popen(
            [sys.executable, "-c", script, doing],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert parent.stdin and parent.stdout
        worker = int(parent.stdout.readline())
        assert doing == "nothing" or appears(tmp_path / f"started_{doing}")
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()
        assert ends(worker), f"the worker outlived its parent, doing {doing}"


def appears(path: Path, limit: float = 60.0) -> bool:
    deadline = time.monotonic() + limit
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return path.exists()


def ends(pid: int, limit: float = 20.0) -> bool:
    """Test whether a process that is not our child ends; a zombie has ended."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


# math-verify


@pytest.fixture
def maths():
    pytest.importorskip("math_verify", reason="needs the extra math")
    return load_verifier(MathVerifier(timeout_seconds=1))


def test_math_knows_equal_from_unequal(maths):
    pairs = {
        (r"so \boxed{\frac12}", "0.5"): 1,
        ("it is 1/2", r"\frac{1}{2}"): 1,
        (r"thus $x = 3$", "3"): 1,
        (r"\boxed{2\sqrt{2}}", r"$\sqrt{8}$"): 1,
        (r"\boxed{\sqrt{2}}", "sqrt(2)"): 1,
        (r"\boxed{1080}", "1,080"): 1,
        (r"\boxed{(1, 2)}", "(1,2)"): 1,
        (r"\boxed{0.51}", "0.5"): 0,
        (r"\boxed{x+1}", "x-1"): 0,
        ("I do not know", "0.5"): 0,
        ("", "0.5"): 0,
    }
    assert maths.rewards(list(pairs)) == list(pairs.values())
    assert maths.extract_answer(r"so \boxed{\frac{3}{4}}") == "3/4"
    assert maths.extract_answer("none") == ""
    assert not maths.reference_error(r"\frac{1}{2}")
    assert "cannot be read" in maths.reference_error("")
    assert maths.extract_answer(maths.format_reference("12")) == "12"
    marked = load_verifier(MathVerifier(mark="<answer>", timeout_seconds=1))
    assert marked.reward(r"1 or 2 <answer>\frac12</answer> 9", "1/2") == 1
    assert marked.reward("1/2", "1/2") == 0


@pytest.mark.slow
def test_a_hostile_expression_costs_its_limit_and_no_more():
    pytest.importorskip("math_verify", reason="needs the extra math")
    maths = load_verifier(MathVerifier(timeout_seconds=0.5))
    hostile = [
        "$9^{9^{9^{9^{9}}}}$",
        "(" * 5000 + "1" + ")" * 5000,
        "\\frac{" * 3000,
        "1" * 10**6,
        "\ud800 \x00 $1$",
        "$__import__('os').system('touch hacked')$",
    ]
    rewards = maths.rewards([(text, "2") for text in [*hostile, r"\boxed{2}"]])
    assert rewards == [0.0] * len(hostile) + [1.0]
    assert not Path("hacked").exists()

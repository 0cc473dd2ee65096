"""Products in bfloat16 that stay compiled on a CPU, as the kernel counts their memory."""

import os
import subprocess
import sys

import pytest
import torch

from copd.branch.micro_batches import NUM_KERNELS, Precision, limit_kernel_caches
from copd.config import ModelConfig
from copd.engine.local import load_policy
from copd.planning.passes import KERNELS

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")

_GROWTH = """
import ctypes, sys
import torch

def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])

ctypes.CDLL(None).mallopt(-3, 2**16)  # freed blocks go back at once
torch.set_num_threads(1)
width, heads = map(int, sys.argv[1:])
weights = torch.zeros(width, width, dtype=torch.bfloat16)
for num_rows in range(16, 76):
    if num_rows == 18:
        before = resident()
    torch.nn.functional.linear(torch.zeros(num_rows, width, dtype=torch.bfloat16), weights)
    keys = torch.zeros(heads, num_rows, 64, dtype=torch.bfloat16)
    keys @ keys.mT
print(resident() - before)
"""


def growth(width: int, heads: int) -> int:
    """Bytes that 116 products of new shapes leave behind, after 4 others."""
    command = [sys.executable, "-c", _GROWTH, str(width), str(heads)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CAPACITIES:
        monkeypatch.setenv(name, "0")  # or what a test sets would stay
        monkeypatch.delenv(name)


needs_onednn = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512" or sys.platform != "linux",
    reason="oneDNN compiles products in bfloat16 with AVX-512",
)


@needs_onednn
@pytest.mark.parametrize(("width", "heads"), [(128, 4), (320, 16), (768, 8)])
def test_they_take_what_the_plan_says(width: int, heads: int):
    limit_kernel_caches()
    assert growth(width, heads) == pytest.approx((1 - 4 / NUM_KERNELS) * KERNELS, rel=0.2)


@needs_onednn
def test_without_a_bound_they_take_more():
    assert growth(128, 4) > 1.5 * KERNELS


@pytest.mark.parametrize(("dtype", "number"), [("bfloat16", str(NUM_KERNELS)), ("float32", None)])
def test_they_are_bounded_with_a_model_that_computes_in_bfloat16(
    dtype: Precision, number: str | None
):
    load_policy("tiny", ModelConfig(path="tiny", device="cpu", dtype=dtype))
    assert [os.environ.get(name) for name in CAPACITIES] == [number, number]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    limit_kernel_caches()
    assert [os.environ[name] for name in CAPACITIES] == [str(NUM_KERNELS), "7"]

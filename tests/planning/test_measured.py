"""The plan against the peak of the resident memory of real runs, in a process of their own.

Freed blocks go back to the kernel at once there (see benchmarks/memory_worker.py), so that a peak
is what is in use; `python -m benchmarks.memory` has the same with glibc left alone.
"""

import pytest

from benchmarks.memory_cases import highest, measured, planned, save_models, values

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CASES = {
    "full, K = 1": ("text", 1, {}),
    "full, K = 3": ("text", 3, {}),
    "LoRA, K = 1": ("text", 1, {"branches": "lora"}),
    "LoRA, K = 3": ("text", 3, {"branches": "lora"}),
    "LoRA, bfloat16": ("text", 1, {"branches": "lora", "dtype": "bfloat16"}),
    "LoRA, checkpointing": ("text", 1, {"branches": "lora", "gradient_checkpointing": True}),
    "checkpointing": ("text", 1, {"gradient_checkpointing": True}),
    "bfloat16": ("text", 1, {"dtype": "bfloat16"}),
    "pictures": ("seeing", 1, {"modality": "image"}),
}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, int]]:
    """By case the measured and the planned peak, in bytes."""
    models = save_models(tmp_path_factory.mktemp("models"), num_layers=4)
    runs = [values(models[kind], num, **more) for kind, num, more in CASES.values()]
    return {
        case: (highest(found), planned(run, found["length"])[0])
        for case, run, found in zip(CASES, runs, measured(runs), strict=True)
    }


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_within_a_fifth_of_what_is_measured(
    peaks: dict[str, tuple[float, int]], case: str
):
    found, told = peaks[case]
    assert told == pytest.approx(found, rel=0.2)


def test_three_adapters_take_little_more_than_one(peaks: dict[str, tuple[float, int]]):
    assert peaks["LoRA, K = 3"][0] <= 1.15 * peaks["LoRA, K = 1"][0]

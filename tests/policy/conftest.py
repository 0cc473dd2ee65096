"""Policies of the tiny models, and prompts of every kind for them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from copd.policy import Policy, Prompt
from copd.types import ContentPart, Image, Message, Text, Video

KINDS = ("text", "image", "video", "mixed")


@pytest.fixture(scope="session")
def seeing(seeing_folder: Path) -> Policy:
    """Shared by tests, so a test that changes weights loads its own."""
    return Policy.load(seeing_folder)


@pytest.fixture
def exact_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a GPU's convolutions in full float32, as its matrix products are by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def no_waiting() -> Callable[[], AbstractContextManager[None]]:
    """A context in which an operation for which the host waits is an error."""

    @contextmanager
    def context() -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return context


@pytest.fixture(scope="session")
def reading(reading_folders: dict[str, Path]) -> dict[str, Policy]:
    return {kind: Policy.load(folder) for kind, folder in reading_folders.items()}


def picture(height: int, width: int) -> Image:
    pixels = np.random.default_rng(height + width).integers(0, 256, (height, width, 3))
    return Image(pixels.astype(np.uint8))


def clip(num_frames: int) -> Video:
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, 32, 32, 3))
    return Video(frames.astype(np.uint8), fps=2.0)


MESSAGES: dict[str, list[tuple[ContentPart, ...]]] = {
    "text": [
        (Text("How many?"),),
        (Text("Name the largest of 3, 8 and 5."),),
        (Text("Hi"),),
    ],
    "image": [
        (picture(32, 48), Text("What is it?")),
        (Text("Compare "), picture(16, 32), Text(" with "), picture(48, 16)),
        (picture(32, 32), Text("?")),
    ],
    "video": [
        (clip(4), Text("What moves?")),
        (Text("Look: "), clip(5)),
        (clip(2), Text(" and "), clip(3)),
    ],
    "mixed": [
        (clip(5), Text("then?")),
        (Text("How many?"),),
        (picture(32, 48), Text("Which is in "), clip(2)),
        (picture(16, 16), Text("?")),
    ],
}


@pytest.fixture(scope="session")
def prompts_of() -> Callable[[Policy, str], list[Prompt]]:
    """Build three or four prompts of a kind, no two of the same length."""

    def render(policy: Policy, kind: str) -> list[Prompt]:
        return [policy.render([Message("user", parts)]) for parts in MESSAGES[kind]]

    return render


@pytest.fixture(scope="session")
def invent() -> Callable[[Policy, list[list[int]]], list[list[NDArray[np.int32]]]]:
    """Draw completions of given lengths from the tokens that a policy can sample."""

    def completions(policy: Policy, lengths: list[list[int]]) -> list[list[NDArray[np.int32]]]:
        allowed = (~policy.banned).nonzero()[:, 0].numpy().astype(np.int32)
        rng = np.random.default_rng(0)
        return [[rng.choice(allowed, size=length) for length in group] for group in lengths]

    return completions

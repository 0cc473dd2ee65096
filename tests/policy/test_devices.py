"""Passes of a model on another device: no operation mixes devices, and none reads a value on the
host. The device is `meta`, whose tensors have shapes only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from copd.functional.logprobs import full_logprobs, token_logprobs
from copd.policy import Policy
from copd.policy.readers.flex import block_mask
from copd.policy.sampling.decoding import Decoding
from tests.packing import flat

_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
RAGGED = [[1, 9, 4], [6], [2, 3, 12, 1]]


class OneDevice(TorchDispatchMode):
    """Refuses operations on two devices, as a GPU would, and counts copies between them."""

    num_copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim > 0}
        assert func in _COPIES or len(devices) <= 1, f"{func} on {devices}"
        result = func(*args, **kwargs)
        self.num_copies += func in _COPIES and {result.device.type} != devices
        return result


@pytest.fixture
def away(seeing_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Policy]:
    """A policy whose weights are on a device without autocast."""
    policy = Policy.load(seeing_folder)
    torch.nn.Module.to(policy.model, "meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type=None: False)
    with OneDevice():
        yield policy


def test_devices_that_meet_are_noticed():
    with OneDevice() as devices, pytest.raises(AssertionError, match="on"):
        torch.add(torch.zeros(2, device="meta"), torch.zeros(2))
    with devices:
        torch.zeros(2).to("meta")
    assert devices.num_copies == 1


def test_packed_passes_and_their_gradient(away, prompts_of):
    completions = [[np.arange(length, dtype=np.int32) for length in group] for group in RAGGED]
    states = away.score(prompts_of(away, "text"), *flat(completions))
    logprobs, _ = token_logprobs(states.hidden, away.head, states.token_ids, banned=away.banned)
    logprobs.sum().backward()
    assert logprobs.device.type == "meta" and logprobs.shape == (38,)
    assert away.head.grad is not None and away.head.grad.device.type == "meta"


@pytest.mark.parametrize("is_static", [False, True])
@torch.no_grad()
def test_decoding(away, prompts_of, is_static):
    prefix = away.read(prompts_of(away, "text"))
    prompt_of_row = torch.tensor([0, 0, 1, 2])
    decoding = Decoding(away.backbone, prefix, prompt_of_row, is_static=is_static)
    decoding.prompt_of_row = prompt_of_row.to("meta")  # on the CPU before, to count rows
    tokens = torch.zeros(4, dtype=torch.int64, device="meta")
    with OneDevice() as devices:
        states = [decoding.step(tokens) for _ in range(3)]
    assert devices.num_copies == 0  # a graph could not replay one
    scores = full_logprobs(states[-1], away.head, banned=away.banned)
    assert scores.shape == (4, away.vocab_size) and scores.device.type == "meta"


def test_blocks_of_flex_attention():
    prompt_of = torch.zeros(700, dtype=torch.int64, device="meta")
    lengths = torch.zeros(3, dtype=torch.int64, device="meta")
    with OneDevice():
        mask = block_mask(prompt_of, prompt_of, lengths, 2)
    assert mask.kv_indices.shape == (1, 1, 6, 12) and mask.kv_indices.device.type == "meta"

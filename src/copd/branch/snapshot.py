"""A branch's weights as they were, to be asked while those it trains move on. Knows no method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from copd.branch.state import write_tensors

_FILE = "snapshot.safetensors"
_OLD_FILE = "kept.safetensors"
"""Its name in checkpoints of earlier versions."""

Parameters = Mapping[str, nn.Parameter]


class WeightSnapshot:
    """A copy of the parameters that are trained; at first there is none."""

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}

    def take(self, parameters: Parameters) -> None:
        """Copies them as they are now, in the place of the copy before."""
        self._weights = {n: p.detach().clone() for n, p in parameters.items() if p.requires_grad}

    @contextmanager
    def swapped_in(self, parameters: Parameters) -> Iterator[None]:
        """Here the parameters have the numbers of the copy.

        Nothing is written into a tensor: a graph that was kept from sampling finds its own again.
        """
        assert self._weights, "weights are kept before they are asked"
        own = {name: parameters[name].data for name in self._weights}
        try:
            for name, weights in self._weights.items():
                parameters[name].data = weights
            yield
        finally:
            for name, weights in own.items():
                parameters[name].data = weights

    def save(self, folder: Path) -> None:
        """Into a branch's folder of a checkpoint, if there is a copy."""
        if self._weights:
            write_tensors({n: w.cpu() for n, w in self._weights.items()}, folder / _FILE)

    def load(self, folder: Path, parameters: Parameters) -> None:
        """The inverse of `save`."""
        paths = [folder / name for name in (_FILE, _OLD_FILE) if (folder / name).exists()]
        found = load_file(paths[0]) if paths else {}
        self._weights = {name: w.to(parameters[name].device) for name, w in found.items()}

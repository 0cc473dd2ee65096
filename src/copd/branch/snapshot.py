"""A snapshot of a branch's weights, for scoring while the weights themselves are trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from copd.branch.state import write_tensors

_FILE = "snapshot.safetensors"
_OLD_FILE = "kept.safetensors"
"""The file's name in checkpoints of earlier versions."""

Parameters = Mapping[str, nn.Parameter]


class WeightSnapshot:
    """A copy of the trainable parameters; empty at first."""

    def __init__(self) -> None:
        self._weights: dict[str, Tensor] = {}

    def take(self, parameters: Parameters) -> None:
        """Copy the parameters, replacing the previous copy."""
        self._weights = {n: p.detach().clone() for n, p in parameters.items() if p.requires_grad}

    @contextmanager
    def swapped_in(self, parameters: Parameters) -> Iterator[None]:
        """Give the parameters the values of the snapshot for a while.

        Tensors are exchanged, not overwritten: a graph kept from sampling finds its own again.
        """
        assert self._weights, "a snapshot is taken before it is used"
        current = {name: parameters[name].data for name in self._weights}
        try:
            for name, weights in self._weights.items():
                parameters[name].data = weights
            yield
        finally:
            for name, weights in current.items():
                parameters[name].data = weights

    def save(self, folder: Path) -> None:
        """Write the snapshot, if there is one, into a branch's folder of a checkpoint."""
        if self._weights:
            write_tensors({n: w.cpu() for n, w in self._weights.items()}, folder / _FILE)

    def load(self, folder: Path, parameters: Parameters) -> None:
        """Load what `save` wrote."""
        paths = [folder / name for name in (_FILE, _OLD_FILE) if (folder / name).exists()]
        weights = load_file(paths[0]) if paths else {}
        self._weights = {name: w.to(parameters[name].device) for name, w in weights.items()}

"""LoRA adapters of several policies on one resident model, with PEFT."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from copd.functional import nearest_of_rank
from copd.policy.loading import import_peft

_MATRICES = ("lora_A", "lora_B")
_PREFIX = "branch_"


class Adapters:
    """Adapters of one model: each changes linear layers of its text part by `scale * B A`.

    All start with the same A, drawn from the seed, and B = 0, which is the base exactly. Outside
    `using` no adapter is active and the model is the base.

    The parameters of all adapters always require gradients. A backward pass may come after a
    switch, and PyTorch silently drops the gradient of a leaf that is frozen at that moment.

    Args:
        model: The base, which is frozen.
        rank: Rank of new adapters.
        alpha: Numerator of the scale `alpha / rank`, the same for all ranks.
        target_modules: The adapted layers as PEFT takes them: names, or "all-linear".
        seed: Seed of A.
        dtype: Type of the passes, in which the frozen matrices below adapters are stored: autocast
            does not cache casts of frozen weights, and would cast them in every pass.

    Raises:
        ValueError: If the package peft is missing.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rank: int,
        alpha: float,
        target_modules: str | list[str],
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._peft = import_peft('model.branches = "lora"')
        self._saved_dtype = model.dtype
        self.model = model.requires_grad_(False)
        self.scale = alpha / rank
        self._rank = rank
        self._targets = target_modules
        self._seed = seed
        self._dtype = dtype
        self._excluded = _tower_pattern(model)
        self._tuner: Any = None  # PEFT's LoraModel, built with the first adapter
        self._layers: dict[str, Any] = {}
        self._active: str | None = None  # PEFT's name of the active adapter

    def add(self, name: str) -> None:
        """Add a new adapter; the active one stays active.

        Raises:
            ValueError: If the target modules are unknown, or not linear layers of the text model.
        """
        self._add(name, self._config({}))

    def remove(self, name: str) -> None:
        """Remove an adapter that is not active, and free its memory."""
        assert self._active != _key(name), "an active adapter cannot be removed"
        self._tuner.delete_adapter(_key(name))
        self._switch(self._active)

    @property
    def active(self) -> str | None:
        """The name of the active adapter; None for the base."""
        return None if self._active is None else self._active.removeprefix(_PREFIX)

    def __contains__(self, name: str) -> bool:
        return any(_key(name) in layer.lora_A for layer in self._layers.values())

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Make an adapter, or with None the base, active inside the context."""
        before, inside = self._active, None if name is None else _key(name)
        if before == inside:
            yield
            return
        self._switch(inside)
        try:
            yield
        finally:
            self._switch(before)

    def parameters(self, name: str | None) -> dict[str, nn.Parameter]:
        """Return an adapter's parameters by layer and matrix; none for the base."""
        if name is None:
            return {}
        return {
            f"{path}.{matrix}": getattr(layer, matrix)[_key(name)].weight
            for path, layer in self._layers.items()
            for matrix in _MATRICES
        }

    def resize(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Give an adapter the ranks of these weights; where ranks change, its own are lost."""
        expected = {key: w.shape for key, w in weights.items()}
        present = {key: p.shape for key, p in self.parameters(name).items()}
        if expected != present and expected.keys() == present.keys():
            self.remove(name)
            self._add(name, self._config(self._ranks(weights)))

    @torch.no_grad()
    def merged(self, name: str | None) -> dict[str, Tensor]:
        """Return the state dict of the plain model with an adapter's change in its weights.

        The sum is computed in float32 or wider and rounded once. The resident weights are not
        touched, since adding a change and subtracting it again does not give the same bits.
        """
        state = {
            key.replace(".base_layer.", "."): tensor.to(self._saved_dtype)
            for key, tensor in self.model.state_dict().items()
            if not any(f".{matrix}." in key for matrix in _MATRICES)
        }
        if name is None:
            return state
        for path, layer in self._layers.items():
            weight, change = state[f"{path}.weight"], layer.get_delta_weight(_key(name))
            wide = torch.promote_types(weight.dtype, torch.float32)
            state[f"{path}.weight"] = (weight.to(wide) + change.to(wide)).to(self._saved_dtype)
        return state

    def save(self, name: str, folder: Path, *, rank: int | None = None) -> None:
        """Save an adapter of the base as PEFT and transformers load it.

        Args:
            name: The adapter.
            folder: Where to save it.
            rank: Save the nearest change of at most this rank.
        """
        weights = {path: p.detach().cpu() for path, p in self.parameters(name).items()}
        if rank is not None:
            weights = nearest_of_rank(weights, rank)
        config = self._config(self._ranks(weights))
        config.base_model_name_or_path = self.model.name_or_path
        config.target_modules = sorted(self._layers)
        config.inference_mode = True
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        named = {f"base_model.model.{key}.weight": w.contiguous() for key, w in weights.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _ranks(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        return {path: len(weights[f"{path}.lora_A"]) for path in self._layers}

    def _add(self, name: str, config: Any) -> None:
        is_first = self._tuner is None
        with torch.random.fork_rng(devices=[]):  # PEFT draws A from torch's global generator
            torch.default_generator.manual_seed(self._seed)
            if is_first:
                self._tuner = self._peft.LoraModel(self.model, config, _key(name))
            else:
                self._tuner.peft_config[_key(name)] = config
                self._tuner.inject_adapter(self.model, _key(name))
        self._layers = {
            path: module
            for path, module in self.model.named_modules()
            if isinstance(module, self._peft.tuners.lora.LoraLayer)
        }
        _check_layers(self._layers, self.model.get_output_embeddings())
        for layer in self._layers.values():
            layer.get_base_layer().to(self._dtype)
        if is_first and self._dtype != self._saved_dtype:
            for parameter in self.model.parameters():
                if parameter.dtype == self._saved_dtype:
                    # one tensor that is still as loaded would keep the whole file in memory
                    parameter.data = parameter.data.clone()
        self.model.eval()  # including the modules that PEFT has added
        self._switch(self._active)

    def _config(self, ranks: Mapping[str, int]) -> Any:
        """Build PEFT's configuration for layers of these ranks; the scale is always the same."""
        rank = max(ranks.values(), default=self._rank)
        others = {path: own for path, own in ranks.items() if own != rank}
        return self._peft.LoraConfig(
            r=rank,
            lora_alpha=self.scale * rank,
            rank_pattern=others,
            alpha_pattern={path: self.scale * own for path, own in others.items()},
            target_modules=self._targets,
            exclude_modules=self._excluded,
            task_type="CAUSAL_LM",
        )

    def _switch(self, key: str | None) -> None:
        """Switch with PEFT's own method, but without freezing inactive adapters: see the class."""
        for layer in self._layers.values():
            layer.set_adapter([] if key is None else [key])
            layer.set_requires_grad([*layer.lora_A], True)
        self._active = key


def _tower_pattern(model: PreTrainedModel) -> str | None:
    """Return a pattern of everything in the vision tower, or None for a text model."""
    towers = [path for path, _ in model.named_modules() if path.split(".")[-1] == "visual"]
    return rf"{re.escape(towers[0])}\..*" if towers else None


def _key(name: str) -> str:
    """Prefix a name, since PEFT stores adapters as attributes, where some words are taken."""
    return _PREFIX + name


def _check_layers(layers: Mapping[str, Any], head: nn.Module | None) -> None:
    """Check for linear layers: passes use the weights of others themselves and miss a change."""
    for path, layer in layers.items():
        if not isinstance(layer.get_base_layer(), nn.Linear) or layer is head:
            raise ValueError(
                f"model.lora.target_modules must name linear layers of the text model: got {path}. "
                'Leave out embeddings and the vocabulary head, or use "all-linear".'
            )

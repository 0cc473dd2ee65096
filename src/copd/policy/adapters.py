"""One resident model and the LoRA adapters of the policies that share it, by PEFT.

At rest no adapter is active: the model is the base. Knows no tokenizer and no optimizer.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from copd.functional import nearest_of_rank
from copd.policy.loading import import_peft

_PARTS = ("lora_A", "lora_B")
_PREFIX = "branch_"


class Adapters:
    """Adapters on one model, each a change `scale * B A` of the linear layers of its text part.

    All start with the same A, drawn from a seed, and B = 0: the base, exactly. Every adapter's
    `requires_grad` stays true whichever is active: a backward pass may come after a switch, and
    PyTorch drops the gradient of a leaf that is frozen at that moment without a sound.

    The frozen matrices under adapters are kept in `dtype`, that of the passes: autocast keeps no
    cast of a frozen weight, and would make one again in every pass.
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
        self._tuner: Any = None  # PEFT's LoraModel, from the first adapter on
        self._layers: dict[str, Any] = {}
        self._active: str | None = None  # as PEFT calls it

    def add(self, name: str) -> None:
        """A fresh adapter; what is active stays."""
        self._add(name, self._config({}))

    def remove(self, name: str) -> None:
        """Forgets an adapter and frees it; nobody may be using it."""
        assert self._active != _key(name), "an adapter in use cannot go"
        self._tuner.delete_adapter(_key(name))
        self._switch(self._active)

    @property
    def active(self) -> str | None:
        """Whose passes run through the model at the moment; none is the base's."""
        return None if self._active is None else self._active.removeprefix(_PREFIX)

    def __contains__(self, name: str) -> bool:
        return any(_key(name) in layer.lora_A for layer in self._layers.values())

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Passes through the model with this adapter, or with none; afterwards as it was before."""
        before, wanted = self._active, None if name is None else _key(name)
        if before == wanted:
            yield
            return
        self._switch(wanted)
        try:
            yield
        finally:
            self._switch(before)

    def parameters(self, name: str | None) -> dict[str, nn.Parameter]:
        """An adapter's parameters under names that say nothing of the adapter; none of the base."""
        if name is None:
            return {}
        return {
            f"{path}.{part}": getattr(layer, part)[_key(name)].weight
            for path, layer in self._layers.items()
            for part in _PARTS
        }

    def fit(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Makes room in an adapter for weights of other ranks; what it held is lost."""
        wanted = {key: w.shape for key, w in weights.items()}
        now = {key: p.shape for key, p in self.parameters(name).items()}
        if wanted != now and wanted.keys() == now.keys():
            ranks = {path: len(weights[f"{path}.lora_A"]) for path in self._layers}
            self.remove(name)
            self._add(name, self._config(ranks))

    @torch.no_grad()
    def merged(self, name: str | None) -> dict[str, Tensor]:
        """The state dict of the plain model with the adapter's change in its weights.

        Summed in float32 or wider and rounded once; the resident weights are not touched, since
        adding a change and taking it away again does not give the same bits.
        """
        state = {
            key.replace(".base_layer.", "."): tensor.to(self._saved_dtype)
            for key, tensor in self.model.state_dict().items()
            if not any(f".{part}." in key for part in _PARTS)
        }
        if name is None:
            return state
        for path, layer in self._layers.items():
            weight, change = state[f"{path}.weight"], layer.get_delta_weight(_key(name))
            wide = torch.promote_types(weight.dtype, torch.float32)
            state[f"{path}.weight"] = (weight.to(wide) + change.to(wide)).to(self._saved_dtype)
        return state

    def save(self, name: str, folder: Path, *, rank: int | None = None) -> None:
        """A folder that PEFT and transformers load as an adapter of the base.

        With `rank`, the nearest change of at most that rank.
        """
        weights = {path: p.detach().cpu() for path, p in self.parameters(name).items()}
        if rank is not None:
            weights = nearest_of_rank(weights, rank)
        ranks = {path: len(weights[f"{path}.lora_A"]) for path in self._layers}
        config = self._config(ranks)
        config.base_model_name_or_path = self.model.name_or_path
        config.target_modules = sorted(self._layers)
        config.inference_mode = True
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(folder)
        named = {f"base_model.model.{key}.weight": w.contiguous() for key, w in weights.items()}
        save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def _add(self, name: str, config: Any) -> None:
        is_first = self._tuner is None
        with _undisturbed(self._seed):
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
            _leave_file(self.model, self._saved_dtype)
        self.model.eval()  # what PEFT has put into it
        self._switch(self._active)

    def _config(self, ranks: Mapping[str, int]) -> Any:
        """For layers of these ranks, all others of the configured one; the scale is that of all."""
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
        """By PEFT's own method, without the freezing of what is not active: see the class."""
        for layer in self._layers.values():
            layer.set_adapter([] if key is None else [key])
            layer.set_requires_grad([*layer.lora_A], True)
        self._active = key


def fusable_weight(layer: nn.Module) -> Float[Tensor, "out in"] | None:
    """The matrix that is all a linear layer does, where it is: what may be joined with others.

    None for one with a bias, and for one whose change by an adapter depends on who is active.
    """
    if type(layer) is nn.Linear and layer.bias is None:
        return layer.weight
    return None


def _tower_pattern(model: PreTrainedModel) -> str | None:
    """Matches everything in the vision tower of a model that has one."""
    towers = [path for path, _ in model.named_modules() if path.split(".")[-1] == "visual"]
    return rf"{re.escape(towers[0])}\..*" if towers else None


def _leave_file(model: nn.Module, dtype: torch.dtype) -> None:
    """Copies what is still as it was loaded: one such tensor keeps the whole file in memory."""
    for parameter in model.parameters():
        if parameter.dtype == dtype:
            parameter.data = parameter.data.clone()


def _key(name: str) -> str:
    """PEFT keeps adapters as attributes, where some words are taken."""
    return _PREFIX + name


def _check_layers(layers: Mapping[str, Any], head: nn.Module | None) -> None:
    """Elsewhere a change would be missed by the passes that use weights themselves."""
    for path, layer in layers.items():
        if not isinstance(layer.get_base_layer(), nn.Linear) or layer is head:
            raise ValueError(
                f"model.lora.target_modules must name linear layers of the text model: got {path}. "
                'Leave out embeddings and the vocabulary head, or use "all-linear".'
            )


@contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """PEFT draws from torch's global generator: here the same numbers always, then as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield

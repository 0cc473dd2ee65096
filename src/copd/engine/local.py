"""All branches in this process, one after another.

The laptop's engine, and the reference for every other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from copd.branch import Branch
from copd.branch.precision import keep_few_kernels
from copd.branch.prompts import PromptCache
from copd.branch.ranks import SINGLE_RANK, Ranks
from copd.config import Config, ModelConfig
from copd.domains import Domain, load_domains
from copd.policy import Adapters, Policy, Sampler
from copd.policy.sampling.vllm import VllmEngine, VllmSampler, require_vllm
from copd.policy.tiny import resolve

Input = TypeVar("Input")
Output = TypeVar("Output")


class LocalEngine:
    """Branches in a dictionary; `call` is a loop over it.

    In a process that is one rank of several, of each branch it holds what is that rank's.
    """

    is_parallel = False

    def __init__(self, config: Config, ranks: Ranks = SINGLE_RANK) -> None:
        if config.engine.num_threads is not None:
            torch.set_num_threads(config.engine.num_threads)
        self._config = config
        self._ranks = ranks
        self._domains = load_domains(config.domains)
        self._branches: dict[str, Branch] = {}
        self._bases: dict[str, tuple[Policy, Adapters]] = {}
        self._book: PromptCache | None = None
        self._vllm = VllmEngine(config.rollout, config.model.dtype)

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        assert name not in self._branches, f"branch {name!r} exists already"
        if self._config.model.branches == "full":
            policy = load_policy(model, self._config.model)
        else:
            base, adapters = self._bases.get(model) or self._load_base(model)
            if not frozen:
                adapters.add(name)
            policy = base.sharing(adapters, None if frozen else name)
        for domain in self._domains.values():
            require_readable(domain, policy, model)
        if self._book is None:
            self._book = PromptCache(self._domains, policy.render_all)
        sampler = None if frozen else self._sampler(policy)
        self._branches[name] = Branch(name, policy, self._book, self._config, self._ranks, sampler)

    def drop(self, name: str) -> None:
        del self._branches[name]
        for _, adapters in self._bases.values():
            if name in adapters:
                adapters.remove(name)

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        return {name: self._apply(method, name, value) for name, value in inputs.items()}

    def clear(self) -> None:
        self._branches.clear()
        self._bases.clear()

    def close(self) -> None:
        self.clear()

    def _apply(self, method: Callable[[Branch, Input], Output], name: str, value: Input) -> Output:
        branch = self._branches[name]
        with branch.unsharded():
            return method(branch, value)

    def _sampler(self, policy: Policy) -> Sampler | None:
        """Who samples for a policy, if not the policy itself."""
        if self._config.rollout.sampler == "internal":
            return None
        require_vllm(policy.device)
        return VllmSampler(policy, self._vllm)

    def _load_base(self, model: str) -> tuple[Policy, Adapters]:
        """The one copy of a model that all its branches with adapters use."""
        policy, config = load_policy(model, self._config.model), self._config.model.lora
        targets = config.target_modules
        adapters = Adapters(
            policy.model,
            rank=config.rank,
            alpha=config.alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            seed=self._config.seed,
            dtype=torch.bfloat16 if self._config.model.dtype == "bfloat16" else torch.float32,
        )
        self._bases[model] = policy, adapters
        return policy, adapters


def load_policy(model: str, config: ModelConfig) -> Policy:
    """A model where the configuration wants it, in float32."""
    device = choose_device(config.device)
    if device == "cpu" and config.dtype == "bfloat16":
        keep_few_kernels()
    return Policy.load(
        resolve(model),
        device=device,
        trust_remote_code=config.trust_remote_code,
    )


def require_readable(domain: Domain, policy: Policy, model: str) -> None:
    """Refuses pictures and clips for a model that reads none."""
    if domain.modality not in policy.modalities:
        raise ValueError(
            f"domain {domain.name!r} needs a model that reads {domain.modality}: {model!r} "
            f"reads {', '.join(sorted(policy.modalities))}. Choose a vision-language model "
            f"in model.path, or remove domains.{domain.name}."
        )


def choose_device(wanted: str) -> str:
    """What `model.device` means on this machine."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            'model.device is "cuda" and torch sees no CUDA device. Use "cpu" or "auto".'
        )
    return wanted

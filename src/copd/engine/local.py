"""The engine that holds all branches in this process; every other engine gives the same results."""

from collections.abc import Callable, Mapping

import torch

from copd.branch import Branch
from copd.branch.micro_batches import limit_kernel_caches
from copd.branch.prompts import PromptCache
from copd.branch.ranks import SINGLE_RANK, Ranks
from copd.config import Config, ModelConfig
from copd.domains import Domain, load_domains
from copd.engine.base import Input, Output
from copd.policy import Adapters, Policy
from copd.policy.sampling.vllm import VllmEngine, VllmSampler, require_vllm
from copd.policy.tiny import resolve


class LocalEngine:
    """Branches in this process, called one after another.

    In a process that is one rank of several, it holds that rank of each branch.
    """

    is_parallel = False

    def __init__(self, config: Config, ranks: Ranks = SINGLE_RANK) -> None:
        if config.engine.num_threads is not None:
            torch.set_num_threads(config.engine.num_threads)
        self._config = config
        self._ranks = ranks
        self._domains = load_domains(config.domains, config.output_dir)
        self._branches: dict[str, Branch] = {}
        self._bases: dict[str, tuple[Policy, Adapters]] = {}
        self._prompt_cache: PromptCache | None = None
        self._vllm = VllmEngine(config.rollout, config.model.dtype)

    def spawn(self, name: str, model: str, *, frozen: bool = False) -> None:
        assert name not in self._branches, f"branch {name!r} exists already"
        config = self._config
        if config.model.branches == "full":
            policy = load_policy(model, config.model)
        else:
            base, adapters = self._bases.get(model) or self._load_base(model)
            if not frozen:
                adapters.add(name)
            policy = base.with_adapter(adapters, None if frozen else name)
        for domain in self._domains.values():
            require_readable(domain, policy, model)
        if self._prompt_cache is None:
            self._prompt_cache = PromptCache(self._domains, policy.render_all)
        sampler = None
        if config.rollout.sampler != "internal" and not frozen:
            require_vllm(policy.device)
            sampler = VllmSampler(policy, self._vllm)
        self._branches[name] = Branch(
            name, policy, self._prompt_cache, config, self._ranks, sampler
        )

    def drop(self, name: str) -> None:
        del self._branches[name]
        for _, adapters in self._bases.values():
            if name in adapters:
                adapters.remove(name)

    def call(
        self, method: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        outputs = {}
        for name, value in inputs.items():
            branch = self._branches[name]
            with branch.unsharded():
                outputs[name] = method(branch, value)
        return outputs

    def clear(self) -> None:
        self._branches.clear()
        self._bases.clear()

    def close(self) -> None:
        self.clear()

    def _load_base(self, model: str) -> tuple[Policy, Adapters]:
        """Load the one copy of a model that all its branches with adapters share."""
        config = self._config.model
        policy, targets = load_policy(model, config), config.lora.target_modules
        adapters = Adapters(
            policy.model,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            target_modules=targets if isinstance(targets, str) else list(targets),
            seed=self._config.seed,
            dtype=torch.bfloat16 if config.dtype == "bfloat16" else torch.float32,
        )
        self._bases[model] = policy, adapters
        return policy, adapters


def load_policy(model: str, config: ModelConfig) -> Policy:
    """Load a model in float32 onto the configured device."""
    device = choose_device(config.device)
    if device == "cpu" and config.dtype == "bfloat16":
        limit_kernel_caches()
    return Policy.load(resolve(model), device=device, trust_remote_code=config.trust_remote_code)


def require_readable(domain: Domain, policy: Policy, model: str) -> None:
    """Raise if a domain has images or videos that the model cannot read."""
    if domain.modality not in policy.modalities:
        raise ValueError(
            f"domain {domain.name!r} needs a model that reads {domain.modality}: {model!r} "
            f"reads {', '.join(sorted(policy.modalities))}. Choose a vision-language model "
            f"in model.path, or remove domains.{domain.name}."
        )


def choose_device(device: str) -> str:
    """Resolve `model.device` on this machine: "auto" is CUDA where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            'model.device is "cuda" and torch sees no CUDA device. Use "cpu" or "auto".'
        )
    return device

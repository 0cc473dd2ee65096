"""The configuration of a run: all sections, and the checks that span several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from copd.config.domains import DomainConfig
from copd.config.recipe import CoPDConfig, ExpertsConfig, PilotConfig, RecipeConfig
from copd.config.rollout import RolloutConfig
from copd.config.sections import (
    CheckpointConfig,
    Count,
    DistillConfig,
    EngineConfig,
    EvaluationConfig,
    LocalEngineConfig,
    LossConfig,
    ModelConfig,
    MonitorConfig,
    Name,
    NonNegativeInt,
    OptimizerConfig,
    RayEngineConfig,
    SampledDistill,
    Section,
    TrackingConfig,
)


class Config(Section):
    """The complete configuration of a run; its JSON is enough to resume it."""

    output_dir: Path = Path("runs/unnamed")
    """Folder of the run."""
    seed: NonNegativeInt = 0
    """Seed of all random draws."""
    max_tokens: Count | None = None
    """Stop training after the step in which all branches together have sampled this many completion
    tokens; by default train to the end of the plan."""
    model: ModelConfig
    domains: Annotated[dict[Name, DomainConfig], Field(min_length=1)]
    """The capabilities to learn, by name."""
    recipe: RecipeConfig
    rollout: RolloutConfig = RolloutConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    distill: DistillConfig = SampledDistill()
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    engine: EngineConfig = LocalEngineConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def branches(self) -> Mapping[str, str]:
        """Each expert branch and its domain; one branch per domain unless the recipe names them."""
        named = self.recipe.branches if isinstance(self.recipe, ExpertsConfig | CoPDConfig) else {}
        return named or {domain: domain for domain in self.domains}

    @model_validator(mode="after")
    def _check(self) -> Config:
        self.recipe.check(self.branches, self.domains)
        if isinstance(self.recipe, PilotConfig):
            self.recipe.check_measured("evaluation", self.evaluation.every)
            self.recipe.check_measured("monitor", self.monitor.every)
        if isinstance(self.recipe, CoPDConfig) and self.recipe.band and not self.monitor.every:
            raise ValueError(
                "recipe.band needs measurements of the overlap in training: got monitor.every = 0. "
                "Set it to the steps between comparisons, such as 5."
            )
        if isinstance(self.engine, RayEngineConfig) and self.engine.ranks_per_branch > 1:
            self._check_ranks(self.engine)
        if self.rollout.sampler == "vllm":
            self._check_vllm()
        split = self.evaluation.split
        for name, domain in self.domains.items():
            available = domain.num_test if split == "test" else domain.num_validation
            if available and self.evaluation.num_problems > available:
                raise ValueError(
                    "evaluation.num_problems must not exceed what a domain has: got "
                    f"{self.evaluation.num_problems}, but domains.{name}.num_{split} is "
                    f"{available}. Lower the first or raise the second."
                )
        return self

    def _check_ranks(self, engine: RayEngineConfig) -> None:
        """Refuse what a branch of several processes does not support."""
        ranks = f"engine.ranks_per_branch = {engine.ranks_per_branch}"
        if self.rollout.num_prompts < engine.ranks_per_branch:
            raise ValueError(
                "rollout.num_prompts must be at least engine.ranks_per_branch, as the ranks share "
                f"the prompts: got {self.rollout.num_prompts} with {ranks}. "
                "Raise the first or lower the second."
            )
        if 0 < engine.num_gpus < 1:
            raise ValueError(
                f"every rank needs a whole GPU: got engine.num_gpus = {engine.num_gpus:g} with "
                f"{ranks}. Set it to 1, or to 0 for CPUs."
            )
        staleness = self.recipe.max_staleness if isinstance(self.recipe, CoPDConfig) else 0
        refused = {
            'model.branches = "lora"': self.model.branches == "lora",
            'optimizer.type = "adamw_8bit"': self.optimizer.type == "adamw_8bit",
            "monitor.gradient_cosine = true": self.monitor.gradient_cosine,
            "recipe.max_staleness": staleness > 0,
        }
        _refuse(refused, f"The ranks of a branch cannot share {{}}: got it with {ranks}.")

    def _check_vllm(self) -> None:
        """Refuse what sampling with vLLM does not support."""
        ranks = self.engine.ranks_per_branch if isinstance(self.engine, RayEngineConfig) else 1
        refused = {
            "engine.ranks_per_branch above 1": ranks > 1,
            'model.device = "cpu"': self.model.device == "cpu",
            "model.trust_remote_code = true": self.model.trust_remote_code,
        }
        message = "vLLM samples for one process, on a GPU, with its own code: got {} and "
        _refuse(refused, message + 'rollout.sampler = "vllm".')
        for name in ("rollout", "evaluation"):
            temperature = getattr(self, name).temperature
            if temperature and not 0.01 <= temperature <= 2:
                raise ValueError(
                    f"vLLM samples at temperatures from 0.01 to 2: got {name}.temperature = "
                    f'{temperature:g}. Change it, or use rollout.sampler = "internal".'
                )


def _refuse(refused: Mapping[str, bool], message: str) -> None:
    """Raise for the first setting of `refused` that is on."""
    for setting, is_on in refused.items():
        if is_on:
            raise ValueError(f"{message.format(setting)} Leave one of the two out.")

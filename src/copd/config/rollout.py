"""Settings of sampling during training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.sections import Count, Fraction, PositiveFloat, Section


class VllmConfig(Section):
    """vLLM on the GPU of the policies, with sampler = "vllm"."""

    memory_share: Fraction = 0.4
    """Share of the GPU's memory for vLLM: a copy of the weights, and the KV cache."""
    tolerance: PositiveFloat = 0.1
    """Limit of the mean absolute difference between the log-probabilities of vLLM and the policy at
    the start, in nats; in float32 it can be much lower."""


class RolloutConfig(Section):
    """The batch of rollouts that a branch samples for one action in one step."""

    num_prompts: Count = 256
    """Prompts per batch (paper: rollout batch 256)."""
    group_size: Annotated[int, Field(strict=True, ge=2)] = 8
    """G, completions per prompt (paper: 8); advantages need at least 2."""
    max_completion_tokens: Count = 16_384
    """Token limit of a completion (paper: 16,384)."""
    max_rows: Count = 1024
    """Completions decoded in parallel; fewer need less memory and give the same tokens."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature (paper: 1.0)."""
    sampler: Literal["internal", "vllm"] = "internal"
    """"internal": the policy itself. "vllm": vLLM on the same GPU, untested (docs/scaling.md)."""
    vllm: VllmConfig = VllmConfig()

    @model_validator(mode="after")
    def _check(self) -> RolloutConfig:
        if self.sampler == "internal" and self.vllm != VllmConfig():
            raise ValueError(
                'rollout.vllm has settings for vLLM, but rollout.sampler is "internal": got '
                f"{self.vllm.model_dump(exclude_defaults=True)}. "
                'Set rollout.sampler = "vllm", or leave the table out.'
            )
        return self

"""How rollouts are sampled, and by whom; defaults are the paper's. Knows no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from copd.config.sections import Count, Fraction, PositiveFloat, Section


class VllmConfig(Section):
    """vLLM beside the policies of a process, with sampler = "vllm"."""

    memory_share: Fraction = 0.4
    """Part of the GPU's memory for vLLM: one copy of the weights, and keys and values."""
    tolerance: PositiveFloat = 0.1
    """Mean |difference| of its log-probabilities and the policy's at the start, at most, in nats;
    in float32 far less should do."""


class RolloutConfig(Section):
    """One batch of rollouts: what a branch samples for one action in one step."""

    num_prompts: Count = 256
    """Prompts per batch (paper: rollout batch 256)."""
    group_size: Annotated[int, Field(strict=True, ge=2)] = 8
    """G, completions per prompt (paper: 8); a lone completion has no advantage."""
    max_completion_tokens: Count = 16_384
    """Where a completion is cut off (paper: 16,384)."""
    max_rows: Count = 1024
    """Completions written side by side; fewer need less memory, and change no token."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature (paper: 1.0)."""
    sampler: Literal["internal", "vllm"] = "internal"
    """"internal": the policy itself. "vllm": vLLM on the same GPU, untried (docs/scaling.md)."""
    vllm: VllmConfig = VllmConfig()
    """vLLM, with sampler = "vllm"."""

    @model_validator(mode="after")
    def _check(self) -> RolloutConfig:
        if self.sampler == "internal" and self.vllm != VllmConfig():
            raise ValueError(
                'rollout.vllm has settings for vLLM and rollout.sampler is "internal": got '
                f"{self.vllm.model_dump(exclude_defaults=True)}. "
                'Set rollout.sampler = "vllm", or leave the table out.'
            )
        return self

"""Sections of the configuration that do not depend on the recipe.

Defaults are those of "paper" (arXiv 2604.27083) or "framework" (the code that the paper builds on).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    model_validator,
)

from copd.config.names import check_name

Count = Annotated[int, Field(strict=True, ge=1)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0)]
Fraction = Annotated[float, Field(strict=True, gt=0, le=1)]
Momentum = Annotated[float, Field(strict=True, ge=0, lt=1)]
Name = Annotated[str, AfterValidator(check_name)]


class Section(BaseModel):
    """Base of all tables: immutable, refuses unknown keys, attribute docstrings become the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class LoraConfig(Section):
    """LoRA adapters of the branches, with branches = "lora"; there is no dropout."""

    rank: Count = 16
    """Rank r of A and B; a layer changes by alpha / r * B A."""
    alpha: PositiveFloat = 32.0
    """Scale of the change before the division by the rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers of the text model with an adapter, by the ends of their names."""
    merged_rank: Count | None = None
    """Bound on the rank of an exported adapter, by SVD; by default a merge is exact and its rank is
    the sum of the ranks of its branches."""


class ModelConfig(Section):
    """The base model theta_0, from which every branch starts."""

    path: Annotated[str, Field(min_length=1)]
    """"tiny" (the embedded base), a model folder, or a name on the Hugging Face hub."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the model's compute; master weights are always float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" uses CUDA if available."""
    trust_remote_code: StrictBool = False
    """Allow a model folder to run its own Python code."""
    frozen_vision: StrictBool = False
    """Do not train the vision tower; it is never trained with branches = "lora"."""
    gradient_checkpointing: StrictBool = False
    """Recompute layers in the backward pass: less memory, about a third more time."""
    branches: Literal["full", "lora"] = "full"
    """"full": each branch has its own weights. "lora": all share the base, with an adapter each."""
    lora: LoraConfig = LoraConfig()
    """LoRA adapters, with branches = "lora"."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.branches == "full" and self.lora != LoraConfig():
            raise ValueError(
                'model.lora has settings for adapters, but model.branches is "full": got '
                f"{self.lora.model_dump(exclude_defaults=True)}. "
                'Set model.branches = "lora", or leave the table out.'
            )
        return self


class OptimizerConfig(Section):
    """AdamW, one update per branch and step; "adamw_8bit" has 8-bit moments (bitsandbytes)."""

    type: Literal["adamw", "adamw_8bit"] = "adamw"
    learning_rate: PositiveFloat = 1e-6
    """Constant after the warmup (paper: 1e-6)."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay (framework: 0.01); weights without a gradient do not decay."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay rates of the two moments (torch's default)."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator (torch's default)."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm (framework: 1.0)."""
    warmup_steps: NonNegativeInt = 0
    """Updates of linear warmup (framework: 0)."""
    micro_batch_tokens: Count = 16_384
    """Tokens per forward and backward pass; changes memory, never the gradient. If all prompts of a
    step fit, sampling and the update share one pass over them."""


class LossConfig(Section):
    """The policy-gradient loss of rewards and of sampled distillation."""

    clip_low: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.2
    """The ratio is clipped from below at 1 - clip_low (paper: 0.2)."""
    clip_high: PositiveFloat = 0.28
    """The ratio is clipped from above at 1 + clip_high (paper: 0.28)."""
    dual_clip: Annotated[float, Field(strict=True, gt=1)] | None = None
    """Bound on the loss of negative advantages (framework: 3.0); idle at one update per batch."""
    aggregation: Literal["token", "sequence"] = "token"
    """Mean over all tokens (framework), or mean of the means of sequences (paper's formula)."""
    advantage_eps: PositiveFloat = 1e-6
    """Added to the standard deviation of the rewards of a group."""
    scale_advantages: StrictBool = True
    """Divide by this standard deviation (paper); false only subtracts the mean."""


class SampledDistill(Section):
    """Reverse KL at the sampled token, as a token advantage beta * delta_t (paper)."""

    type: Literal["sampled"] = "sampled"
    log_ratio_clamp: PositiveFloat | None = None
    """Bound on |delta_t| in nats; none in the paper."""
    control_variate: StrictBool = False
    """Add the exact KL per token to delta_t: same expected gradient, less variance (2605.07865)."""
    extrapolation: PositiveFloat = 1.0
    """lambda of ExOPD (2602.12125): above 1 moves beyond the teacher, away from the base."""
    match_scale: StrictBool = False
    """Scale each domain by clip(sigma_all / sigma_domain, 0.25, 4), as DN-MOPD does; no effect for
    a student with a single cross batch."""


class TopKDistill(Section):
    """A divergence over the teacher's top_k tokens and a tail bucket, as a direct loss."""

    type: Literal["topk"] = "topk"
    form: Literal["reverse", "forward", "jsd"] = "reverse"
    """KL(student || teacher), KL(teacher || student) or Jensen-Shannon."""
    top_k: Count = 32
    """Number of the teacher's most probable tokens (2603.25562: 32)."""


class FullDistill(Section):
    """A divergence over the whole vocabulary, as a direct loss; for small vocabularies."""

    type: Literal["full"] = "full"
    form: Literal["reverse", "forward", "jsd"] = "reverse"
    """KL(student || teacher), KL(teacher || student) or Jensen-Shannon."""


DistillConfig = Annotated[SampledDistill | TopKDistill | FullDistill, Field(discriminator="type")]


class MonitorConfig(Section):
    """Measurements during training: how far policies are apart, whether gradients agree."""

    overlap_k: Count = 10
    """k of the top-k overlap O_k (paper: 10)."""
    num_probe_tokens: Count = 128
    """Tokens compared per pair of policies and measurement, the probes."""
    score_top_k: Count = 16
    """The teacher's top tokens at each probe of a cross batch, over which its KL is measured."""
    probe_top_k: Count = 128
    """The same for the comparisons of `every` and for the control variate; exact if it is at least
    the vocabulary size."""
    every: NonNegativeInt = 0
    """Steps between comparisons of all branches and the base (dynamics.jsonl); 0 turns them off."""
    num_problems: Count = 8
    """Validation problems per domain for these comparisons."""
    num_samples: Count = 2
    """Completions per problem."""
    gradient_cosine: StrictBool = False
    """Measure cosines between the gradients of an update's batches; stores a gradient for each."""

    @model_validator(mode="after")
    def _check(self) -> MonitorConfig:
        for name in ("score_top_k", "probe_top_k"):
            if (top_k := getattr(self, name)) < self.overlap_k:
                raise ValueError(
                    f"monitor.{name} must be at least monitor.overlap_k = {self.overlap_k}: "
                    f"got {top_k}. Raise {name}."
                )
        return self


class EvaluationConfig(Section):
    """Accuracy and pass@k on held-out problems."""

    split: Literal["validation", "test"] = "test"
    """Problems to evaluate on; use "validation" while you choose settings."""
    num_problems: Count = 256
    """Problems per domain; a "validation" merge also uses this many, or all if there are fewer."""
    num_samples: Count = 4
    """Completions per problem, for the accuracy and pass@k."""
    temperature: NonNegativeFloat = 0.7
    """Sampling temperature (framework: 0.7); 0 is greedy."""
    every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates only at the start and the end."""
    base: StrictBool = True
    """Evaluate the base model before the first step."""
    branches: StrictBool = True
    """Evaluate every branch at the end, not only the final model."""
    max_completion_tokens: Count | None = None
    """Token limit of a completion; by default that of rollout."""


class CheckpointConfig(Section):
    """Checkpoints of all branches together."""

    every: Count = 10
    """Steps between checkpoints."""
    keep: Count = 2
    """Number of latest checkpoints to keep."""
    milestones: tuple[Count, ...] = ()
    """Further steps with a checkpoint, which is never deleted."""


class LocalEngineConfig(Section):
    """All branches in this process, one after another; the default engine."""

    type: Literal["local"] = "local"
    num_threads: Count | None = None
    """CPU threads; by default torch decides."""
    max_failures: ClassVar[int] = 0
    """A lost branch is the loss of this process."""


class RayEngineConfig(Section):
    """One or more processes per branch, in parallel, on Ray; needs the package ray."""

    type: Literal["ray"] = "ray"
    address: Annotated[str, Field(min_length=1)] | None = None
    """Address of a running cluster, or "auto"; by default the run starts and stops its own."""
    ranks_per_branch: Count = 1
    """Processes per branch; they share its prompts, and its weights and optimizer by FSDP2."""
    num_threads: Count = 1
    """CPU threads per process."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs of the cluster that each process reserves; ignored without an address."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs that each process reserves; 0.5 puts two branches on one GPU."""
    start_limit: PositiveFloat = 600.0
    """Seconds for a branch to be placed and to load its model."""
    time_limit: PositiveFloat = 21_600.0
    """Seconds for one call of a branch to sample, score or update; then it counts as lost."""
    max_failures: Annotated[int, Field(strict=True, ge=-1)] = 3
    """Restarts in a row, without a new checkpoint in between, after a branch is lost; -1 for no
    limit."""


def _local_by_default(engine: object) -> object:
    return {"type": "local", **engine} if isinstance(engine, dict) else engine


EngineConfig = Annotated[
    LocalEngineConfig | RayEngineConfig,
    Field(discriminator="type"),
    BeforeValidator(_local_by_default),
]


class TrackingConfig(Section):
    """Experiment trackers that receive the metrics, besides the run directory."""

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Trackers: any of "tensorboard", "wandb", "trackio"."""
    project: Annotated[str, Field(min_length=1)] = "copd"
    """Project in wandb and trackio."""
    run_name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the run there; by default the name of its folder."""

"""The sections every run has, whatever its recipe; defaults are the paper's. Knows no torch.

Citations: "paper" is arXiv 2604.27083; "framework" is a default of the code the paper builds on.
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
    """What every table shares: immutable, unknown keys refused, docstrings kept as help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class LoraConfig(Section):
    """The adapters of branches, with branches = "lora"; packed passes have no dropout."""

    rank: Count = 16
    """Columns of B and rows of A: a layer changes by alpha / rank * B A."""
    alpha: PositiveFloat = 32.0
    """Scale of the change, before it is divided by the rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Linear layers of the text model that get an adapter, by the ends of their names."""
    merged_rank: Count | None = None
    """Bound on the rank of an exported adapter, by SVD; by default the merge of K branches keeps
    all their ranks and is exact."""


class ModelConfig(Section):
    """The base model theta_0 that every branch starts from."""

    path: Annotated[str, Field(min_length=1)]
    """"tiny" (the embedded base), a model folder, or a hub name."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of compute; master weights are float32 either way."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes CUDA where there is one."""
    trust_remote_code: StrictBool = False
    """Let a model folder run its own Python code."""
    frozen_vision: StrictBool = False
    """Keep the vision tower as it is in the base model; with adapters it always is."""
    gradient_checkpointing: StrictBool = False
    """Compute layers again in the backward pass: less memory, about a third more time."""
    branches: Literal["full", "lora"] = "full"
    """"full": each branch owns its weights. "lora": one base in memory, an adapter per branch."""
    lora: LoraConfig = LoraConfig()
    """The adapters, with branches = "lora"."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.branches == "full" and self.lora != LoraConfig():
            raise ValueError(
                'model.lora has settings for adapters and model.branches is "full": got '
                f"{self.lora.model_dump(exclude_defaults=True)}. "
                'Set model.branches = "lora", or leave the table out.'
            )
        return self


class OptimizerConfig(Section):
    """AdamW, one update per branch and step; "adamw_8bit": its moments in 8 bits (bitsandbytes)."""

    type: Literal["adamw", "adamw_8bit"] = "adamw"
    """"adamw_8bit" keeps the moments in 8 bits and needs the package bitsandbytes."""
    learning_rate: PositiveFloat = 1e-6
    """Constant after the warmup (paper: 1e-6)."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay (framework: 0.01)."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Decay of the two moment estimates (the default of torch)."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator (the default of torch)."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm (framework: 1.0)."""
    warmup_steps: NonNegativeInt = 0
    """Updates of linear warmup (framework: none)."""
    micro_batch_tokens: Count = 16_384
    """Tokens per forward and backward; changes memory, never the gradient. If it holds all prompts
    of a step, they are read once for sampling and update."""


class LossConfig(Section):
    """The policy-gradient loss, shared by rewards and sampled distillation."""

    clip_low: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.2
    """The ratio is clipped from below at 1 - clip_low (paper: 0.2)."""
    clip_high: PositiveFloat = 0.28
    """The ratio is clipped from above at 1 + clip_high (paper: 0.28)."""
    dual_clip: Annotated[float, Field(strict=True, gt=1)] | None = None
    """Bound on the loss of a negative advantage (framework: 3.0); idle at one update per batch."""
    aggregation: Literal["token", "sequence"] = "token"
    """Mean over "token" (framework), or per "sequence" first (paper's formula)."""
    advantage_eps: PositiveFloat = 1e-6
    """Added to the standard deviation of a group's rewards."""
    scale_advantages: StrictBool = True
    """Divide by that standard deviation (paper); false only subtracts the mean."""


class SampledDistill(Section):
    """Reverse KL at the sampled token, as a token advantage beta * delta_t (paper)."""

    type: Literal["sampled"] = "sampled"
    """The paper's distillation loss."""
    log_ratio_clamp: PositiveFloat | None = None
    """Bound on |delta_t|; none in the paper."""
    control_variate: StrictBool = False
    """Add the exact KL per token to delta_t: the same mean gradient, less variance (2605.07865)."""
    extrapolation: PositiveFloat = 1.0
    """lambda of ExOPD (2602.12125): above 1 goes beyond the teacher, away from the base."""
    match_scale: StrictBool = False
    """Scale each domain by clip(sigma_all / sigma_domain, 0.25, 4), as DN-MOPD does; idle for a
    student with one cross batch, since there is nothing to compare it with."""


class TopKDistill(Section):
    """A divergence over the teacher's top_k tokens and a bucket for the rest, as a direct loss."""

    type: Literal["topk"] = "topk"
    """A true divergence at any top_k."""
    form: Literal["reverse", "forward", "jsd"] = "reverse"
    """KL(student||teacher), KL(teacher||student) or Jensen-Shannon."""
    top_k: Count = 32
    """Tokens of the teacher kept (2603.25562: 32)."""


class FullDistill(Section):
    """A divergence over the whole vocabulary, as a direct loss."""

    type: Literal["full"] = "full"
    """Exact, at the price of a pass over the vocabulary."""
    form: Literal["reverse", "forward", "jsd"] = "reverse"
    """KL(student||teacher), KL(teacher||student) or Jensen-Shannon."""


DistillConfig = Annotated[SampledDistill | TopKDistill | FullDistill, Field(discriminator="type")]


class MonitorConfig(Section):
    """How far apart policies are, and whether lessons agree, measured while they train."""

    overlap_k: Count = 10
    """k of the top-k overlap (paper: 10)."""
    num_probe_tokens: Count = 128
    """Tokens compared per pair of policies and measurement."""
    score_top_k: Count = 16
    """Most probable tokens a teacher tells at each; the KL of cross batches is computed on them."""
    probe_top_k: Count = 128
    """The same for the comparisons of `every` and the control variate; exact from the vocabulary
    size up."""
    every: NonNegativeInt = 0
    """Steps between comparisons of all branches and the base (dynamics.jsonl); 0 for none."""
    num_problems: Count = 8
    """Validation problems per domain that are answered for them."""
    num_samples: Count = 2
    """Completions per problem."""
    gradient_cosine: StrictBool = False
    """Measure the cosines between the gradients of an update's lessons; keeps one for each."""

    @model_validator(mode="after")
    def _check(self) -> MonitorConfig:
        for name, told in (("score_top_k", self.score_top_k), ("probe_top_k", self.probe_top_k)):
            if told < self.overlap_k:
                raise ValueError(
                    f"monitor.{name} must be at least monitor.overlap_k = {self.overlap_k}: "
                    f"got {told}. Raise {name}."
                )
        return self


class EvaluationConfig(Section):
    """Accuracy and pass@k on held-out problems."""

    split: Literal["validation", "test"] = "test"
    """Where trained models are measured; "validation" while settings are being chosen."""
    num_problems: Count = 256
    """Problems per domain; where validation problems choose merge weights, at most all of them."""
    num_samples: Count = 4
    """Completions per problem; pass@k is estimated from them."""
    temperature: NonNegativeFloat = 0.7
    """Sampling temperature (framework: 0.7); 0 is greedy."""
    every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the start and at the end only."""
    base: StrictBool = True
    """Measure the base model before the first step."""
    branches: StrictBool = True
    """Measure every branch at the end, even where one model is the result."""
    max_completion_tokens: Count | None = None
    """Where a completion is cut off; by default as in rollout."""


class CheckpointConfig(Section):
    """Checkpoints of the whole ensemble."""

    every: Count = 10
    """Steps between checkpoints."""
    keep: Count = 2
    """Complete checkpoints kept."""
    milestones: tuple[Count, ...] = ()
    """Steps that have a checkpoint whatever `every` says, and keep it."""


class LocalEngineConfig(Section):
    """Branches in this process, one after another."""

    type: Literal["local"] = "local"
    """What an engine is without a type."""
    num_threads: Count | None = None
    """CPU threads; torch decides by default."""
    max_failures: ClassVar[int] = 0
    """This process cannot outlive its branches."""


class RayEngineConfig(Section):
    """Processes per branch, side by side, on Ray (docs/scaling.md)."""

    type: Literal["ray"] = "ray"
    """Needs the package ray."""
    address: Annotated[str, Field(min_length=1)] | None = None
    """Of a cluster that runs, or "auto"; by default one is started here and ended with the run."""
    ranks_per_branch: Count = 1
    """Processes that share one branch: its prompts, and its weights and optimizer by FSDP2."""
    num_threads: Count = 1
    """CPU threads of each of these processes."""
    num_cpus: NonNegativeFloat = 1.0
    """CPUs of the cluster that each reserves; without an address they do not count."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs that each reserves; 0.5 puts two branches on one."""
    start_limit: PositiveFloat = 600.0
    """Seconds until a branch has found its place and loaded its model."""
    time_limit: PositiveFloat = 21_600.0
    """Seconds a branch may sample, score or learn at a time; after that it counts as lost."""
    max_failures: Annotated[int, Field(strict=True, ge=-1)] = 3
    """Times in a row that a run begins again after a loss, without a new checkpoint in between; -1
    for no limit."""


def _local_by_default(engine: object) -> object:
    return {"type": "local", **engine} if isinstance(engine, dict) else engine


EngineConfig = Annotated[
    LocalEngineConfig | RayEngineConfig,
    Field(discriminator="type"),
    BeforeValidator(_local_by_default),
]


class TrackingConfig(Section):
    """Where metrics are sent besides the run directory."""

    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """Any of "tensorboard", "wandb", "trackio"."""
    project: Annotated[str, Field(min_length=1)] = "copd"
    """Project in wandb and trackio."""
    run_name: Annotated[str, Field(min_length=1)] | None = None
    """Name of the run there; by default that of its folder."""

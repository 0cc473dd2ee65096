"""The branch: a policy with its optimizer, and the methods that an engine calls on it."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from copd.branch.advantages import token_advantages
from copd.branch.diverged import annotate_divergence, require_finite
from copd.branch.fsdp import ShardedModel
from copd.branch.gradients import Gradients
from copd.branch.learner import BatchStatistics, Learner, batch_metrics
from copd.branch.micro_batches import Forward
from copd.branch.optimizer import build_optimizer, update
from copd.branch.probe import measure_agreement, sample_probes, token_divergences
from copd.branch.prompts import PromptCache
from copd.branch.ranks import SINGLE_RANK, Ranks
from copd.branch.rollouts import (
    join_batches,
    join_evaluations,
    pack_batch,
    pack_evaluation,
    verify_probes,
)
from copd.branch.sampler_check import SamplerCheck, check_sampler
from copd.branch.sampling import InProcessSampler
from copd.branch.scoring import (
    PolicyOutputs,
    join_requests,
    score_completions,
    split_outputs,
    teacher_outputs,
)
from copd.branch.snapshot import WeightSnapshot
from copd.branch.state import load_optimizer, load_weights, optimizer_state, save_state
from copd.config import Config
from copd.policy import (
    Policy,
    Prompt,
    Sampler,
    SamplingRequest,
    SharedPrefix,
    Vocabulary,
    vocabulary_of,
)
from copd.types import (
    Agreement,
    EvaluationRequest,
    EvaluationRollouts,
    Metrics,
    ProbeRollouts,
    ProblemId,
    RolloutBatch,
    RolloutRequest,
    ScoreRequest,
    TeacherOutputs,
    TokenDivergence,
    TrainingBatch,
    UpdateRequest,
)


class Branch:
    """One co-evolving policy, theta_k, with its optimizer.

    Every method takes one value and returns one, plain arrays and names, so that an engine can
    carry both between processes. If several ranks make the branch, each method is called on all of
    them with the same value, inside `unsharded`, and the first rank's result counts.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        prompt_cache: PromptCache,
        config: Config,
        ranks: Ranks = SINGLE_RANK,
        sampler: Sampler | None = None,
    ) -> None:
        self.name = name
        self._policy = policy
        self._prompt_cache = prompt_cache
        self._rollout = config.rollout
        self._monitor = config.monitor
        self._optimizer_config = config.optimizer
        self._merged_rank = config.model.lora.merged_rank
        self._forward = Forward(policy, config.optimizer.micro_batch_tokens, config.model.dtype)
        self._learner = Learner(self._forward, config.loss, config.distill, config.monitor)
        self._sampler = sampler or InProcessSampler(self._forward, config.rollout.max_rows)
        policy.set_vision_trainable(not config.model.frozen_vision)
        if config.model.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        self._ranks = ranks
        self._sharded = None if ranks.mesh is None else ShardedModel(policy.model, ranks.mesh)
        self._optimizer = build_optimizer(self._parameters(), config.optimizer)
        self._num_updates = 0
        self._snapshot = WeightSnapshot()
        # prompts read while sampling, with their graph, for the update that follows
        self._prefixes: dict[tuple[ProblemId, ...], SharedPrefix] = {}

    def unsharded(self) -> AbstractContextManager[None]:
        """Gather the weights of a rank's policy, which all methods need."""
        return nullcontext() if self._sharded is None else self._sharded.unsharded()

    def sample(self, requests: Sequence[RolloutRequest]) -> list[RolloutBatch]:
        """Sample and verify one batch of rollouts per request.

        The prompts as they were read are kept for the next update, if one micro-batch holds them.
        """
        shards = self._ranks.all_ranks(lambda: self._sample_shard(requests))
        return [join_batches(batch_shards) for batch_shards in zip(*shards, strict=True)]

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherOutputs]:
        """Score students' completions as their teacher, at temperature 1."""
        if not requests:
            return []
        joined = join_requests(requests)
        shards = self._ranks.all_ranks(lambda: self._score_shard(joined))
        outputs = teacher_outputs([shard for shard in shards if shard], joined)
        return split_outputs(outputs, requests)

    def snapshot(self, _: None = None) -> None:
        """Copy the current weights, for `score_with_snapshot`."""
        self._snapshot.take(self._parameters())

    def score_with_snapshot(self, requests: Sequence[ScoreRequest]) -> list[TeacherOutputs]:
        """Score like `score`, with the weights of the last snapshot."""
        with self._snapshot.swapped_in(self._parameters()):
            return self.score(requests)

    def probe(self, requests: Sequence[RolloutRequest]) -> list[ProbeRollouts]:
        """Sample held-out problems, to compare other branches with; training is not affected."""
        limit = self._rollout.max_completion_tokens
        prompts = [self._held_out_prompts(request.problems) for request in requests]
        with annotate_divergence(self.name, requests):
            return sample_probes(
                self._forward, self._monitor, self._sampler, requests, prompts, limit
            )

    def measure_agreement(self, probes: Sequence[Sequence[ProbeRollouts]]) -> list[list[Agreement]]:
        """Measure how much this branch agrees with others: one sequence per set of problems."""
        return [
            measure_agreement(
                self._forward, self._monitor, own, self._held_out_prompts(own[0].problems)
            )
            for own in probes
        ]

    def token_divergences(self, probes: Sequence[ProbeRollouts]) -> list[TokenDivergence]:
        """Compare this branch with others, token by token."""
        return [
            token_divergences(
                self._forward, self._monitor, [own], self._held_out_prompts(own.problems)
            )[0]
            for own in probes
        ]

    def verify(self, probes: Sequence[ProbeRollouts]) -> list[EvaluationRollouts]:
        """Verify the completions of probe rollouts."""
        return [verify_probes(own, self._prompt_cache.held_out) for own in probes]

    def check_sampler(self, requests: Sequence[RolloutRequest]) -> list[SamplerCheck]:
        """Compare the sampler with the policy, before and after a change of weights."""
        prompts = [self._held_out_prompts(request.problems) for request in requests]
        return check_sampler(self._forward, self._sampler, requests, prompts)

    def vocabulary(self, _: None = None) -> Vocabulary:
        """Return the policy's tokens, and which of them it may sample."""
        return vocabulary_of(self._policy)

    def update(self, request: UpdateRequest) -> Metrics:
        """Make one optimizer update on all batches, which weigh the same.

        Args:
            request: The training batches.

        Returns:
            Metrics by `action/name`, listed in docs/metrics.md.

        Raises:
            Diverged: If a loss or gradient is not finite.
        """
        batches, learner = request.batches, self._learner
        advantages = token_advantages(batches, learner.loss, learner.distill)
        trained = [p for p in self._parameters().values() if p.requires_grad]
        gradients = Gradients(trained) if self._monitor.gradient_cosine else None
        found = self._ranks.all_ranks(lambda: self._backward(request, advantages, gradients))
        metrics: dict[str, float] = {}
        for batch, own, *shards in zip(batches, advantages, *found, strict=True):
            measured = batch_metrics(batch, BatchStatistics.join(shards), own)
            metrics |= {f"{batch.rollouts.action}/{key}": v for key, v in measured.items()}
        if gradients:
            metrics |= gradients.restore_sum()
        if self._sharded is not None:
            self._sharded.collect_gradients()
        self._num_updates += 1
        metrics |= update(self._optimizer, self._optimizer_config, self._num_updates)
        self._sampler.refresh()
        return metrics

    def evaluate(self, request: EvaluationRequest) -> EvaluationRollouts:
        """Sample and verify `num_samples` completions for the first problems of a split."""
        shards = self._ranks.all_ranks(lambda: self._evaluate_shard(request))
        return join_evaluations([shard for shard in shards if shard])

    def weights(self, _: None = None) -> dict[str, Tensor]:
        """Copy the float32 weights, or those of the adapter, to the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self._policy.parameters().items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over weights of equal shapes (adapters: of any rank), with a new optimizer."""
        self._policy.resize_adapter(weights)
        load_weights(self._parameters(), weights)
        self._sampler.refresh()
        self._prefixes = {}
        self._optimizer = build_optimizer(self._parameters(), self._optimizer_config)
        self._num_updates = 0

    def save(self, folder: Path) -> None:
        """Write weights, snapshot and optimizer into `folder/<name>`, as safetensors."""
        state = optimizer_state(self._parameters(), self._optimizer, self._num_updates)
        if self._ranks.is_first:
            save_state(self._policy.parameters(), state, folder / self.name)
            self._snapshot.save(folder / self.name)

    def restore(self, folder: Path) -> None:
        """Load what `save` wrote."""
        source, parameters = folder / self.name, self._parameters()
        self._prefixes = {}
        load_weights(parameters, source / "model.safetensors")
        self._sampler.refresh()
        self._snapshot.load(source, parameters)
        self._num_updates = load_optimizer(
            parameters, self._optimizer, source / "optimizer.safetensors"
        )

    def export(self, folder: Path) -> None:
        """Write the policy as an ordinary Hugging Face model folder."""
        if self._ranks.is_first:
            self._policy.save(folder, None if self._sharded is None else self._sharded.state())

    def export_adapter(self, folder: Path) -> None:
        """Write the adapter as a folder for PEFT."""
        self._policy.save_adapter(folder, rank=self._merged_rank)

    def _held_out_prompts(self, problems: Sequence[ProblemId]) -> Sequence[Prompt]:
        return self._prompt_cache.held_out.prompts(problems)

    def _sample_shard(self, requests: Sequence[RolloutRequest]) -> list[RolloutBatch | None]:
        """Sample this rank's shard of every batch; None if there are fewer problems than ranks."""
        shards = [self._ranks.shard(len(request.problems)) for request in requests]
        own = {i: shard for i, shard in enumerate(shards) if shard.start < shard.stop}
        sampling = {
            i: SamplingRequest(
                self._prompt_cache.prompts(requests[i].problems[shard]),
                self._rollout.group_size,
                requests[i].temperature,
                requests[i].seed,
                first_prompt=shard.start,
                num_prompts=len(requests[i].problems),
            )
            for i, shard in own.items()
        }
        self._prefixes = {}
        # adapters share the memory of one model, which the graphs of all branches would exceed
        keep_graph, limit = self._policy.owns_model, self._rollout.max_completion_tokens
        with annotate_divergence(self.name, requests):
            sampled = self._sampler.sample([*sampling.values()], limit, keep_graph=keep_graph)
        if keep_graph and sampled.prefixes is not None:
            problems = [requests[i].problems for i in own]
            self._prefixes = dict(zip(problems, sampled.prefixes, strict=True))
        batches: list[RolloutBatch | None] = [None] * len(requests)
        for i, completions in zip(own, sampled.completions, strict=True):
            request = replace(requests[i], problems=requests[i].problems[own[i]])
            batches[i] = pack_batch(request, sampling[i].prompts, completions, self._prompt_cache)
        return batches

    def _score_shard(self, request: ScoreRequest) -> PolicyOutputs | None:
        shard = self._ranks.shard(len(request.problems))
        if shard.start == shard.stop:
            return None
        prompts = self._prompt_cache.prompts(request.problems[shard])
        return score_completions(self._forward, prompts, request, first=shard.start)

    def _backward(
        self,
        request: UpdateRequest,
        advantages: Sequence[Tensor | None],
        gradients: Gradients | None,
    ) -> list[BatchStatistics]:
        """Add the gradient of this rank's shard of every batch to the policy's parameters."""
        parameters = self._policy.parameters().values()
        for parameter in parameters:
            parameter.grad = None
        statistics = []
        for batch, own in zip(request.batches, advantages, strict=True):
            statistics.append(self._backward_batch(batch, own, 1.0 / len(request.batches)))
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            require_finite(self.name, "loss", statistics[-1].loss, batch, request)
            require_finite(self.name, "gradient", float(norm), batch, request)
            if gradients:
                gradients.take(batch.rollouts.action)
        self._prefixes = {}
        return statistics

    def _backward_batch(
        self, batch: TrainingBatch, advantages: Tensor | None, weight: float
    ) -> BatchStatistics:
        problems = batch.rollouts.problems
        shard = self._ranks.shard(len(problems))
        prompts = self._prefixes.pop(problems, None) or self._prompt_cache.prompts(problems[shard])
        return self._learner.backward(batch, advantages, weight, prompts=prompts, shard=shard)

    def _evaluate_shard(self, request: EvaluationRequest) -> EvaluationRollouts | None:
        first, end = request.shard or (0, request.num_problems)
        problems = [ProblemId(request.domain, request.split, i) for i in range(first, end)]
        shard = self._ranks.shard(len(problems))
        if shard.start == shard.stop:
            return None
        sampling = SamplingRequest(
            self._prompt_cache.prompts(problems[shard]),
            request.num_samples,
            request.temperature,
            request.seed,
            first_prompt=first + shard.start,
            num_prompts=request.num_problems,
        )
        sampled = self._sampler.sample([sampling], request.max_completion_tokens)
        return pack_evaluation(problems[shard], sampled.completions[0], self._prompt_cache)

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer updates: all, or this rank's shards of them."""
        return self._policy.parameters() if self._sharded is None else self._sharded.parameters

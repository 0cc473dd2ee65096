"""The branch: a policy with its optimizer, and the methods an engine applies to it.

Plain arrays go in and come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from copd.branch.advantages import token_advantages
from copd.branch.diverged import annotate_divergence, require_finite
from copd.branch.fsdp import ShardedModel
from copd.branch.gradients import Gradients
from copd.branch.learner import BatchRecord, Learner, batch_metrics
from copd.branch.optimizer import build_optimizer, update
from copd.branch.probe import measure_agreement, probe, token_divergences
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
from copd.policy import Policy, Sampler, SamplingRequest, SharedPrefix, Vocabulary, vocabulary_of
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
    UpdateRequest,
)


class Branch:
    """theta_k with its optimizer.

    Every method takes one value and returns one, so an engine can carry it anywhere. A method of a
    branch of several ranks is called on all of them, each time with the same value, inside
    `unsharded`; what the first rank returns counts.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        book: PromptCache,
        config: Config,
        ranks: Ranks = SINGLE_RANK,
        sampler: Sampler | None = None,
    ) -> None:
        self.name = name
        self._policy = policy
        self._book = book
        self._rollout = config.rollout
        self._optimizer_config = config.optimizer
        self._merged_rank = config.model.lora.merged_rank
        self._learning = Learner(
            loss=config.loss,
            distill=config.distill,
            monitor=config.monitor,
            micro_batch_tokens=config.optimizer.micro_batch_tokens,
            precision=config.model.dtype,
        )
        self._sampler = sampler or InProcessSampler(policy, self._learning, config.rollout.max_rows)
        policy.set_vision_trainable(not config.model.frozen_vision)
        if config.model.gradient_checkpointing:
            policy.checkpoint()
        self._ranks = ranks
        self._shards = None if ranks.mesh is None else ShardedModel(policy.model, ranks.mesh)
        self._optimizer = build_optimizer(self._owned(), config.optimizer)
        self._num_updates = 0
        self._snapshot = WeightSnapshot()
        self._read: dict[tuple[ProblemId, ...], SharedPrefix] = {}  # from sampling to update

    def unsharded(self) -> AbstractContextManager[None]:
        """Here a rank's policy has all its weights: what methods need."""
        return nullcontext() if self._shards is None else self._shards.unsharded()

    def sample(self, requests: Sequence[RolloutRequest]) -> list[RolloutBatch]:
        """A batch of rollouts per request, verified.

        The prompts as they were read stay for the next update, if one micro-batch holds them all.
        """
        found = self._ranks.all_ranks(lambda: self._sample_shard(requests))
        return [join_batches(pieces) for pieces in zip(*found, strict=True)]

    def score(self, requests: Sequence[ScoreRequest]) -> list[TeacherOutputs]:
        """What this branch, as a teacher at temperature 1, says about its students' tokens."""
        if not requests:
            return []
        joined = join_requests(requests)
        told = self._ranks.all_ranks(lambda: self._score_own(joined))
        return split_outputs(teacher_outputs([piece for piece in told if piece], joined), requests)

    def snapshot(self, _: None = None) -> None:
        """Remembers its weights as they are now, for `score_with_snapshot`."""
        self._snapshot.take(self._owned())

    def score_with_snapshot(self, requests: Sequence[ScoreRequest]) -> list[TeacherOutputs]:
        """`score`, with the weights that were kept last."""
        with self._snapshot.swapped_in(self._owned()):
            return self.score(requests)

    def probe(self, requests: Sequence[RolloutRequest]) -> list[ProbeRollouts]:
        """How this branch answers held-out problems; what training has read stays as it is."""
        limit = self._rollout.max_completion_tokens
        prompts = [self._book.aside.prompts(request.problems) for request in requests]
        with annotate_divergence(self.name, requests):
            return probe(self._policy, self._learning, self._sampler, requests, prompts, limit)

    def measure_agreement(
        self, portraits: Sequence[Sequence[ProbeRollouts]]
    ) -> list[list[Agreement]]:
        """How like others this branch is: their portraits, a sequence per set of problems."""
        read = self._book.aside.prompts
        return [
            measure_agreement(self._policy, self._learning, own, read(own[0].problems))
            for own in portraits
        ]

    def token_divergences(self, portraits: Sequence[ProbeRollouts]) -> list[TokenDivergence]:
        """Where and how others differ from this branch, token by token."""
        read = self._book.aside.prompts
        return [
            token_divergences(self._policy, self._learning, [p], read(p.problems))[0]
            for p in portraits
        ]

    def verify(self, portraits: Sequence[ProbeRollouts]) -> list[EvaluationRollouts]:
        """What portraits' completions earn."""
        return [verify_probes(portrait, self._book.aside) for portrait in portraits]

    def check_sampler(self, requests: Sequence[RolloutRequest]) -> list[SamplerCheck]:
        """How far its sampler is from its policy, before and after a change of weights."""
        prompts = [self._book.aside.prompts(request.problems) for request in requests]
        return check_sampler(self._policy, self._learning, self._sampler, requests, prompts)

    def vocabulary(self, _: None = None) -> Vocabulary:
        """Its tokens, and which of them it may sample."""
        return vocabulary_of(self._policy)

    def update(self, request: UpdateRequest) -> Metrics:
        """One optimizer update on all lessons, weighing the same; returns `action/name` metrics."""
        signals = token_advantages(request.lessons, self._learning.loss, self._learning.distill)
        trained = [p for p in self._owned().values() if p.requires_grad]
        apart = Gradients(trained) if self._learning.monitor.gradient_cosine else None
        found = self._ranks.all_ranks(lambda: self._backward(request, signals, apart))
        metrics: dict[str, float] = {}
        for lesson, advantages, *pieces in zip(request.lessons, signals, *found, strict=True):
            measured = batch_metrics(lesson, BatchRecord.join(pieces), advantages)
            metrics |= {f"{lesson.batch.action}/{key}": value for key, value in measured.items()}
        if apart:
            metrics |= apart.restore_sum()
        if self._shards is not None:
            self._shards.collect_gradients()
        self._num_updates += 1
        metrics |= update(self._optimizer, self._optimizer_config, self._num_updates)
        self._sampler.refresh()
        return metrics

    def evaluate(self, request: EvaluationRequest) -> EvaluationRollouts:
        """Rewards of `num_samples` completions for the first problems of a split, or a piece."""
        found = self._ranks.all_ranks(lambda: self._evaluate_shard(request))
        return join_evaluations([piece for piece in found if piece])

    def weights(self, _: None = None) -> dict[str, Tensor]:
        """The float32 master weights, or those of the adapter, copied to the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self._policy.parameters().items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over weights of equal shapes (adapters: of any rank), with a new optimizer."""
        self._policy.fit(weights)
        load_weights(self._owned(), weights)
        self._sampler.refresh()
        self._read = {}
        self._optimizer = build_optimizer(self._owned(), self._optimizer_config)
        self._num_updates = 0

    def save(self, folder: Path) -> None:
        """Weights, those kept and optimizer into `folder/<name>`, without executable content."""
        kept = optimizer_state(self._owned(), self._optimizer, self._num_updates)
        if self._ranks.is_first:
            save_state(self._policy.parameters(), kept, folder / self.name)
            self._snapshot.save(folder / self.name)

    def restore(self, folder: Path) -> None:
        """The inverse of `save`."""
        source = folder / self.name
        self._read = {}
        owned = self._owned()
        load_weights(owned, source / "model.safetensors")
        self._sampler.refresh()
        self._snapshot.load(source, owned)
        self._num_updates = load_optimizer(owned, self._optimizer, source / "optimizer.safetensors")

    def export(self, folder: Path) -> None:
        """The policy as an ordinary Hugging Face model folder."""
        if self._ranks.is_first:
            self._policy.save(folder, None if self._shards is None else self._shards.state())

    def export_adapter(self, folder: Path) -> None:
        """The adapter as a folder for PEFT."""
        self._policy.save_adapter(folder, rank=self._merged_rank)

    def _sample_shard(self, requests: Sequence[RolloutRequest]) -> list[RolloutBatch | None]:
        """This rank's pieces of batches; none of those that have fewer problems than ranks."""
        pieces = [self._ranks.shard(len(request.problems)) for request in requests]
        own = {i: piece for i, piece in enumerate(pieces) if piece.start < piece.stop}
        wanted = {
            i: SamplingRequest(
                self._book.prompts(requests[i].problems[piece]),
                self._rollout.group_size,
                requests[i].temperature,
                requests[i].seed,
                first_prompt=piece.start,
                num_prompts=len(requests[i].problems),
            )
            for i, piece in own.items()
        }
        self._read = {}
        # with adapters all branches live in the memory of one, and their graphs would not
        keep_graph, limit = self._policy.owns_model, self._rollout.max_completion_tokens
        with annotate_divergence(self.name, requests):
            sampled = self._sampler.sample([*wanted.values()], limit, keep_graph=keep_graph)
        if keep_graph and sampled.prefixes is not None:
            problems = [requests[i].problems for i in own]
            self._read = dict(zip(problems, sampled.prefixes, strict=True))
        batches: list[RolloutBatch | None] = [None] * len(requests)
        for i, groups in zip(own, sampled.groups, strict=True):
            request = replace(requests[i], problems=requests[i].problems[own[i]])
            batches[i] = pack_batch(request, wanted[i].prompts, groups, self._book)
        return batches

    def _score_own(self, question: ScoreRequest) -> PolicyOutputs | None:
        """What this rank says about its piece of a question."""
        piece = self._ranks.shard(len(question.problems))
        if piece.start == piece.stop:
            return None
        prompts = self._book.prompts(question.problems[piece])
        return score_completions(self._policy, self._learning, prompts, question, first=piece.start)

    def _backward(
        self,
        request: UpdateRequest,
        signals: Sequence[Tensor | None],
        apart: Gradients | None,
    ) -> list[BatchRecord]:
        """The gradient of this rank's pieces of the lessons, onto the policy's parameters."""
        parameters, records = self._policy.parameters().values(), list[BatchRecord]()
        for parameter in parameters:
            parameter.grad = None
        for lesson, advantages in zip(request.lessons, signals, strict=True):
            problems = lesson.batch.problems
            piece = self._ranks.shard(len(problems))
            record = self._learning.backward(
                self._policy,
                lesson,
                advantages,
                1.0 / len(request.lessons),
                prompts=self._read.pop(problems, None) or self._book.prompts(problems[piece]),
                piece=piece,
            )
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            require_finite(self.name, "loss", record.loss, lesson, request)
            require_finite(self.name, "gradient", float(norm), lesson, request)
            records.append(record)
            if apart:
                apart.take(lesson.batch.action)
        self._read = {}
        return records

    def _evaluate_shard(self, request: EvaluationRequest) -> EvaluationRollouts | None:
        """This rank's piece of an evaluation."""
        first, end = request.shard or (0, request.num_problems)
        names = [ProblemId(request.domain, request.split, i) for i in range(first, end)]
        piece = self._ranks.shard(len(names))
        if piece.start == piece.stop:
            return None
        wanted = SamplingRequest(
            self._book.prompts(names[piece]),
            request.num_samples,
            request.temperature,
            request.seed,
            first_prompt=first + piece.start,
            num_prompts=request.num_problems,
        )
        (groups,) = self._sampler.sample([wanted], request.max_completion_tokens).groups
        return pack_evaluation(names[piece], groups, self._book)

    def _owned(self) -> dict[str, nn.Parameter]:
        """What the optimizer updates: this rank's shares of the parameters, or all of them."""
        return self._policy.parameters() if self._shards is None else self._shards.parameters

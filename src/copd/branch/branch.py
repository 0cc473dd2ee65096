"""The branch: a policy with its optimizer, and the verbs an engine applies to it.

Plain arrays go in and come out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from copd.branch.cosine import Gradients
from copd.branch.learning import Diverged, Learning, lesson_metrics
from copd.branch.lesson import token_advantages
from copd.branch.optimizer import build_optimizer
from copd.branch.portrait import compare, contrast, portray
from copd.branch.prompts import PromptBook
from copd.branch.rollouts import pack_batch, verified
from copd.branch.sampling import Sampled, Wanted, sample_batches
from copd.branch.scoring import join_requests, score, split_scores
from copd.branch.state import load_optimizer, load_weights, save_optimizer, save_weights
from copd.config import Config, SampledDistill
from copd.policy import Policy, SharedPrefix, Vocabulary, vocabulary_of
from copd.types import (
    Answers,
    Batch,
    Contrast,
    EvaluationRequest,
    Lesson,
    Likeness,
    Metrics,
    Portrait,
    ProblemId,
    SampleRequest,
    ScoreRequest,
    Scores,
    UpdateRequest,
)


class Branch:
    """theta_k with its optimizer.

    Every verb takes one value and returns one, so an engine can carry it anywhere.
    """

    def __init__(self, name: str, policy: Policy, book: PromptBook, config: Config) -> None:
        self.name = name
        self._policy = policy
        self._book = book
        self._rollout = config.rollout
        self._optimizer_config = config.optimizer
        self._merged_rank = config.model.lora.merged_rank
        self._learning = Learning(
            loss=config.loss,
            distill=config.distill,
            monitor=config.monitor,
            micro_batch_tokens=config.optimizer.micro_batch_tokens,
            precision=config.model.dtype,
        )
        policy.set_vision_trainable(not config.model.frozen_vision)
        if config.model.gradient_checkpointing:
            policy.checkpoint()
        self._optimizer = build_optimizer(policy.parameters(), config.optimizer)
        self._num_updates = 0
        self._read: dict[tuple[ProblemId, ...], SharedPrefix] = {}  # from sampling to update

    def sample(self, requests: Sequence[SampleRequest]) -> list[Batch]:
        """A batch of rollouts per request, verified.

        The prompts as they were read stay for the next update, if one micro-batch holds them all.
        """
        self._read = {}
        wanted = [
            Wanted(
                self._book.prompts(request.problems),
                self._rollout.group_size,
                request.temperature,
                request.seed,
            )
            for request in requests
        ]
        # with adapters all branches live in the memory of one, and their graphs would not
        keep_graph = self._policy.owns_model
        with self._naming(requests):
            sampled = self._sample(
                wanted, self._rollout.max_completion_tokens, keep_graph=keep_graph
            )
        if keep_graph and sampled.prefixes is not None:
            problems = [request.problems for request in requests]
            self._read = dict(zip(problems, sampled.prefixes, strict=True))
        return [
            pack_batch(request, batch.prompts, groups, self._book)
            for request, batch, groups in zip(requests, wanted, sampled.groups, strict=True)
        ]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """What this branch, as a teacher at temperature 1, says about its students' tokens."""
        if not requests:
            return []
        joined = join_requests(requests)
        prompts = self._book.prompts(joined.problems)
        return split_scores(score(self._policy, self._learning, prompts, joined), requests)

    def portray(self, requests: Sequence[SampleRequest]) -> list[Portrait]:
        """How this branch answers held-out problems; what training has read stays as it is."""
        limit, max_rows = self._rollout.max_completion_tokens, self._rollout.max_rows
        prompts = [self._book.aside.prompts(request.problems) for request in requests]
        with self._naming(requests):
            return portray(
                self._policy, self._learning, requests, prompts, limit, max_rows=max_rows
            )

    def compare(self, portraits: Sequence[Sequence[Portrait]]) -> list[list[Likeness]]:
        """How like others this branch is: their portraits, a sequence per set of problems."""
        prompts = [self._book.aside.prompts(own[0].problems) for own in portraits]
        return [
            compare(self._policy, self._learning, own, read)
            for own, read in zip(portraits, prompts, strict=True)
        ]

    def contrast(self, portraits: Sequence[Portrait]) -> list[Contrast]:
        """Where and how others differ from this branch, token by token."""
        prompts = [self._book.aside.prompts(portrait.problems) for portrait in portraits]
        return [
            contrast(self._policy, self._learning, [portrait], read)[0]
            for portrait, read in zip(portraits, prompts, strict=True)
        ]

    def verify(self, portraits: Sequence[Portrait]) -> list[Answers]:
        """What portraits' completions earn."""
        return [verified(portrait, self._book.aside) for portrait in portraits]

    def vocabulary(self, _: None = None) -> Vocabulary:
        """Its tokens, and which of them it may sample."""
        return vocabulary_of(self._policy)

    def update(self, request: UpdateRequest) -> Metrics:
        """One optimizer update on all lessons, weighing the same; returns `action/name` metrics."""
        distill = self._learning.distill
        signals = token_advantages(
            request.lessons,
            self._learning.loss,
            distill if isinstance(distill, SampledDistill) else None,
        )
        self._optimizer.zero_grad(set_to_none=True)
        apart = Gradients(self._parameters()) if self._learning.monitor.gradient_cosine else None
        metrics: dict[str, float] = {}
        for lesson, advantages in zip(request.lessons, signals, strict=True):
            problems = lesson.batch.problems
            record = self._learning.backward(
                self._policy,
                lesson,
                advantages,
                1.0 / len(request.lessons),
                prompts=self._read.pop(problems, None) or self._book.prompts(problems),
            )
            self._require_finite("loss", record.loss, lesson, request)
            self._require_finite("gradient", self._gradient_norm(), lesson, request)
            metrics |= {
                f"{lesson.batch.action}/{key}": value
                for key, value in lesson_metrics(lesson, record, advantages).items()
            }
            if apart:
                apart.take(lesson.batch.action)
        if apart:
            metrics |= apart.give_back()
        self._read = {}
        metrics["update/grad_norm"] = self._step()
        metrics["update/learning_rate"] = self._optimizer.param_groups[0]["lr"]
        return metrics

    def evaluate(self, request: EvaluationRequest) -> Answers:
        """Rewards of `num_samples` completions for the first `num_problems` problems of a split, or
        for a piece of them."""
        first, end = request.piece or (0, request.num_problems)
        names = [ProblemId(request.domain, request.split, i) for i in range(first, end)]
        wanted = Wanted(
            self._book.prompts(names),
            request.num_samples,
            request.temperature,
            request.seed,
            first_prompt=first,
            num_prompts=request.num_problems,
        )
        (groups,) = self._sample([wanted], request.max_completion_tokens).groups
        return Answers(
            suites=tuple(self._book.problem(name).suite for name in names),
            rewards=self._book.verify_groups(names, groups),
            lengths=np.array(
                [[len(c.token_ids) for c in group] for group in groups], dtype=np.int32
            ),
        )

    def weights(self, _: None = None) -> dict[str, Tensor]:
        """The float32 master weights, or those of the adapter, copied to the CPU."""
        return {name: p.detach().cpu().clone() for name, p in self._policy.parameters().items()}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Takes over weights of the same names and shapes; the optimizer starts afresh.

        An adapter takes any rank.
        """
        self._policy.fit(weights)
        load_weights(self._policy.parameters(), weights)
        self._read = {}
        self._optimizer = build_optimizer(self._policy.parameters(), self._optimizer_config)
        self._num_updates = 0

    def save(self, folder: Path) -> None:
        """Weights and optimizer into `folder/<name>`, without executable content."""
        target = folder / self.name
        target.mkdir(parents=True)
        parameters = self._policy.parameters()
        save_weights(parameters, target / "model.safetensors")
        save_optimizer(
            parameters, self._optimizer, self._num_updates, target / "optimizer.safetensors"
        )

    def restore(self, folder: Path) -> None:
        """The inverse of `save`."""
        source = folder / self.name
        self._read = {}
        parameters = self._policy.parameters()
        load_weights(parameters, source / "model.safetensors")
        self._num_updates = load_optimizer(
            parameters, self._optimizer, source / "optimizer.safetensors"
        )

    def export(self, folder: Path) -> None:
        """The policy as an ordinary Hugging Face model folder."""
        self._policy.save(folder)

    def export_adapter(self, folder: Path) -> None:
        """The adapter as a folder for PEFT."""
        self._policy.save_adapter(folder, rank=self._merged_rank)

    def _sample(
        self, wanted: Sequence[Wanted], max_completion_tokens: int, *, keep_graph: bool = False
    ) -> Sampled:
        return sample_batches(
            self._policy,
            wanted,
            max_completion_tokens=max_completion_tokens,
            max_prompt_tokens=self._learning.micro_batch_tokens,
            max_rows=self._rollout.max_rows,
            precision=self._learning.precision,
            keep_graph=keep_graph,
        )

    @contextmanager
    def _naming(self, requests: Sequence[SampleRequest]) -> Iterator[None]:
        """A branch that cannot sample any more says which it is, and where."""
        try:
            yield
        except FloatingPointError as error:
            domains = dict.fromkeys(repr(r.problems[0].domain) for r in requests)
            raise Diverged(
                f"branch {self.name!r} cannot sample on domain {', '.join(domains)} at "
                f"{requests[0].position}: {error}"
            ) from error

    def _step(self) -> float:
        """Clips and updates; returns the gradient norm before clipping."""
        config = self._optimizer_config
        norm = torch.nn.utils.clip_grad_norm_(self._parameters(), config.max_grad_norm)
        self._num_updates += 1
        warm = min(1.0, self._num_updates / config.warmup_steps) if config.warmup_steps else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = config.learning_rate * warm
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)  # other branches need the memory meanwhile
        return float(norm)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _gradient_norm(self) -> float:
        grads = [p.grad for p in self._parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(grads))

    def _require_finite(
        self, what: str, value: float, lesson: Lesson, request: UpdateRequest
    ) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"the {what} of branch {self.name!r} on domain {lesson.domain!r} is {value} at "
                f"{request.position}: the run stopped before this update. "
                "Start again in another output_dir with a lower optimizer.learning_rate."
            )

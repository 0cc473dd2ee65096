"""Co-Evolving Policy Distillation in one file: Algorithm 1 of arXiv 2604.27083, top to bottom.

    copy theta_0 into K branches, one per domain
    repeat N times:
        S_RL steps   (RLVR)     every branch k trains on rewards, on its own domain D_k
        S_OPD steps  (mutual)   the same, and every other branch j teaches k on its domain D_j
    merge the branches: average their weights

Run it on a laptop CPU:

    python examples/copd_loop.py configs/laptop.toml

This is the whole method on copd's public building blocks, without an engine, checkpoints,
evaluation or options: full weights, sampled reverse KL, and every branch learns from every other.
`copd train` computes the same numbers (tests/test_copd_loop.py compares them) and adds the rest.

Shapes: P prompts, G completions of each (a group), B = P * G completions, N tokens of all
completions, V tokens in the vocabulary.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from copd.config import Config, CoPDConfig, load_config
from copd.domains import load_domains
from copd.domains.base import Domain
from copd.engine.local import load_policy
from copd.functional import (
    average,
    clipped_surrogate,
    full_logprobs,
    group_relative,
    sampled_reverse_kl,
    token_logprobs,
    token_weights,
    topk_overlap,
)
from copd.policy import Draw, Policy, Prompt, SharedPrefix
from copd.run.seeds import derive_seed, draw_problems
from copd.types import Completions, Metrics


@dataclass
class Batch:
    """One group of completions for each of P problems, sampled by one branch."""

    key: str
    """Name of the batch in metrics."""
    prompts: list[Prompt]
    prefix: SharedPrefix
    """The prompts as the branch read them, with their graph."""
    completions: Completions
    rewards: Tensor
    """Shape `P G`."""
    temperature: float
    teacher: str | None = None
    """The branch that scores this batch; None trains on rewards."""
    teacher_logprobs: Tensor | None = None
    """Shape `N`."""
    teacher_topk: Tensor | None = None
    """Shape `N k`, the teacher's most probable tokens."""

    @property
    def old_logprobs(self) -> Tensor:
        """Log-probabilities under the policy that sampled, shape `N`."""
        return torch.from_numpy(self.completions.logprobs)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, shape `B`."""
        return torch.from_numpy(self.completions.lengths)


class Branch:
    """theta_k with its optimizer."""

    def __init__(self, name: str, config: Config) -> None:
        self.name = name
        self.policy = load_policy(config.model.path, config.model)
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters().values(),
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=True,
        )


def sample(
    branch: Branch,
    sources: list[tuple[str, str, str | None]],
    domains: Mapping[str, Domain],
    config: Config,
    *,
    stage: int,
    step: int,
) -> list[Batch]:
    """Sample and verify one batch for each source, given as key, domain and teacher or None."""
    policy, rollout = branch.policy, config.rollout
    problems, prompts, draws = [], [], []
    for key, domain, teacher in sources:
        # every batch has its own endless, shuffled stream of problems, and its own seed
        stream = (config.seed, branch.name, key)
        first, count = (step - 1) * rollout.num_prompts, rollout.num_prompts
        num_train = domains[domain].num_problems("train")
        names = draw_problems(stream, domain, num_train, start=first, count=count)
        problems.append([domains[domain].problem("train", name.index) for name in names])
        prompts.append(policy.render_all([problem.messages for problem in problems[-1]]))
        # delta compares the policies themselves, so cross batches are sampled at temperature 1
        temperature = 1.0 if teacher else rollout.temperature
        generator = torch.Generator().manual_seed(derive_seed(*stream, stage, step, "sample"))
        # a group shares its prompt, which is read once for sampling and update alike
        prefix = policy.read(prompts[-1])
        draws.append(Draw(prefix, rollout.group_size, temperature, generator))
    sampled = policy.sample_together(draws, max_tokens=rollout.max_completion_tokens)
    batches = []
    for i, (key, domain, teacher) in enumerate(sources):
        rewards = domains[domain].verify_all(
            [problem for problem in problems[i] for _ in range(rollout.group_size)],
            sampled[i].texts,
        )
        shaped = torch.tensor(rewards).reshape(-1, rollout.group_size)
        draw = draws[i]
        batches.append(
            Batch(key, prompts[i], draw.prefix, sampled[i], shaped, draw.temperature, teacher)
        )
    return batches


@torch.no_grad()
def score(teacher: Branch, batches: list[Batch], k: int) -> None:
    """Score the students' batches in one pass: the teacher's log-probabilities and top k tokens."""
    policy = teacher.policy
    prefix = policy.read([prompt for batch in batches for prompt in batch.prompts])
    sampled = Completions.join([batch.completions for batch in batches])
    states = policy.score(prefix, sampled.token_ids, sampled.lengths)
    logprobs, _ = token_logprobs(states.hidden, policy.head, states.token_ids, banned=policy.banned)
    top = full_logprobs(states.hidden, policy.head, banned=policy.banned).topk(k).indices
    sizes = [int(batch.lengths.sum()) for batch in batches]
    for batch, own, own_top in zip(batches, logprobs.split(sizes), top.split(sizes), strict=True):
        batch.teacher_logprobs, batch.teacher_topk = own, own_top


def update(branch: Branch, batches: list[Batch], config: Config, beta: float) -> Metrics:
    """Make one optimizer update on the native and the cross batches, which weigh the same."""
    policy, metrics = branch.policy, dict[str, float]()
    for batch in batches:
        sampled = batch.completions
        states = policy.score(batch.prefix, sampled.token_ids, sampled.lengths)
        logprobs, entropies = token_logprobs(
            states.hidden,
            policy.head,
            states.token_ids,
            banned=policy.banned,
            temperature=batch.temperature,
        )
        if batch.teacher_logprobs is None:
            # A_i = (r_i - mean r) / (std r + eps), the same for all tokens of completion i
            advantages = group_relative(batch.rewards, eps=config.loss.advantage_eps).flatten()
            advantages = advantages.repeat_interleave(batch.lengths)
        else:
            # A_it = beta * delta_it with delta_it = log pi_teacher(y_t) - log pi_student(y_t)
            delta = sampled_reverse_kl(
                student_logprobs=batch.old_logprobs, teacher_logprobs=batch.teacher_logprobs
            )
            advantages = beta * delta
            metrics[f"{batch.key}/delta_mean"] = float(delta.mean())
            metrics[f"{batch.key}/overlap"] = overlap(policy, batch, states.hidden.detach())
        losses, _ = clipped_surrogate(
            logprobs,
            batch.old_logprobs,
            advantages,
            clip_low=config.loss.clip_low,
            clip_high=config.loss.clip_high,
        )
        loss = (token_weights(batch.lengths, config.loss.aggregation) * losses).sum()
        (loss / len(batches)).backward()
        metrics[f"{batch.key}/loss"] = float(loss.detach())
        metrics[f"{batch.key}/reward"] = float(batch.rewards.mean())
        metrics[f"{batch.key}/entropy"] = float(entropies.mean())
    parameters = list(policy.parameters().values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.max_grad_norm)
    branch.optimizer.step()
    branch.optimizer.zero_grad()
    return metrics | {"update/grad_norm": float(norm)}


def overlap(policy: Policy, batch: Batch, hidden: Tensor) -> float:
    """Return O_k, the mean share of top-k tokens that student and teacher have in common."""
    assert batch.teacher_topk is not None, "only a scored batch has an overlap"
    student = full_logprobs(hidden, policy.head, banned=policy.banned)
    own = student.topk(batch.teacher_topk.shape[1]).indices
    return float(topk_overlap(own, batch.teacher_topk).mean())


def train(config: Config) -> tuple[Policy, list[dict[str, Metrics]]]:
    """Run Algorithm 1.

    Args:
        config: A configuration whose recipe is `copd` with topology "all". Sections that this file
            has no use for are ignored.

    Returns:
        The merged policy, and for each step the metrics of each branch.
    """
    recipe = config.recipe
    if not isinstance(recipe, CoPDConfig) or recipe.topology != "all":
        raise ValueError(
            'this file runs recipe.type = "copd" with topology "all": got another recipe or '
            "topology. Run it with `copd train`."
        )
    domains = load_domains(config.domains)
    branches = {name: Branch(name, config) for name in config.branches}
    betas = recipe.betas(config.branches)
    step, history = 0, list[dict[str, Metrics]]()
    for stage in range(2 * recipe.rounds):
        is_mutual = stage % 2 == 1
        for _ in range(recipe.opd_steps if is_mutual else recipe.rlvr_steps):
            step += 1
            batches: dict[str, list[Batch]] = {}
            for name, branch in branches.items():
                own = config.branches[name]
                sources: list[tuple[str, str, str | None]] = [(f"rlvr/{own}", own, None)]
                for teacher, domain in config.branches.items() if is_mutual else ():
                    if teacher != name:
                        sources.append((f"opd/from_{teacher}/{domain}", domain, teacher))
                batches[name] = sample(branch, sources, domains, config, stage=stage, step=step)
            # all teachers score before any branch updates: nobody changes while it is queried
            cross = [batch for own in batches.values() for batch in own if batch.teacher]
            for name, branch in branches.items() if is_mutual else ():
                own_students = [batch for batch in cross if batch.teacher == name]
                score(branch, own_students, config.monitor.overlap_k)
            history.append(
                {n: update(b, batches[n], config, betas[n]) for n, b in branches.items()}
            )
            report(step, history[-1])
    # Merge: the plain average of the branches' weights
    merged = average([branch.policy.parameters() for branch in branches.values()])
    policy = load_policy(config.model.path, config.model)
    with torch.no_grad():
        for name, parameter in policy.parameters().items():
            parameter.copy_(merged[name])
    return policy, history


def report(step: int, metrics: dict[str, Metrics]) -> None:
    """Print the rewards of native batches and the overlaps with teachers."""
    shown = []
    for branch, values in metrics.items():
        shown += [
            f"{branch} {v:4.2f}"
            for key, v in values.items()
            if key.startswith("rlvr/") and key.endswith("/reward")
        ]
    overlaps = [
        v for values in metrics.values() for key, v in values.items() if key.endswith("/overlap")
    ]
    if overlaps:
        shown.append(f"overlap {sum(overlaps) / len(overlaps):.3f}")
    print(f"step {step:4d}  reward  {'  '.join(shown)}", flush=True)


def main() -> None:
    """Train by the configuration named on the command line and save the merged policy."""
    config = load_config(Path(sys.argv[1]), sys.argv[2:])
    policy, _ = train(config)
    policy.save(config.output_dir / "final")
    print(f"merged model: {config.output_dir / 'final'}")


if __name__ == "__main__":
    main()

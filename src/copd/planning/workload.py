"""How much passes through a run at once: tokens, rows and pixels, from its configuration.

Knows no model and no bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from copd.config import Config
from copd.recipes import OPD, Plan

EVALUATION_CHUNK = 512
"""Problems of an evaluation held at once."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a usual prompt, how many of them stand for pixels, and tokens of a completion."""

    prompt: int
    visual: int
    completion: int
    longest: int
    """Of the prompts read together: rectangles are padded to it."""


@dataclass(frozen=True)
class Workload:
    """The largest step of a plan, seen by a branch."""

    num_batches: int
    """Actions of the branch that has most of them."""
    num_taught: int
    """Batches that the teacher with most students scores at once."""
    num_prompts: int
    """Of a batch."""
    group_size: int
    lengths: Lengths
    micro_batch_tokens: int
    max_rows: int

    @property
    def step_prompts(self) -> int:
        """Prompts of all batches of a branch."""
        return self.num_batches * self.num_prompts

    @property
    def loop_prompts(self) -> int:
        """Prompts whose completions are written in one loop."""
        by_rows = self.max_rows // self.group_size
        by_tokens = self.micro_batch_tokens // self.lengths.prompt
        return max(1, min(self.step_prompts, by_rows, by_tokens))

    @property
    def is_one_loop(self) -> bool:
        """Then the graph of the prompts stays for the update."""
        return self.loop_prompts == self.step_prompts

    @property
    def problem_tokens(self) -> int:
        """Tokens of a prompt and its completions, as micro-batches count them."""
        return self.lengths.prompt + self.group_size * self.lengths.completion

    @property
    def part_prompts(self) -> int:
        """Problems of a micro-batch."""
        return max(1, min(self.num_prompts, self.micro_batch_tokens // self.problem_tokens))

    @property
    def scored_prompts(self) -> int:
        """The same where a teacher scores several batches as one."""
        asked = self.num_taught * self.num_prompts
        return min(asked, max(1, self.micro_batch_tokens // self.problem_tokens))

    @property
    def has_several_parts(self) -> bool:
        """Gradients of one are there while another is run."""
        return self.num_batches > 1 or self.part_prompts < self.num_prompts


def find_workload(config: Config, plan: Plan, lengths: Lengths) -> Workload:
    """The step with most batches, and the one with most questions to a teacher."""
    stages = plan.stages
    taught = [
        sum(isinstance(a, OPD) and a.teacher == name for a in stage.actions)
        for stage in stages
        for name in plan.branches
    ]
    return Workload(
        num_batches=max(len(s.actions_of(name)) for s in stages for name in s.trained),
        num_taught=max(taught),
        num_prompts=config.rollout.num_prompts,
        group_size=config.rollout.group_size,
        lengths=lengths,
        micro_batch_tokens=config.optimizer.micro_batch_tokens,
        max_rows=config.rollout.max_rows,
    )

"""How much a run does at once: the batch of every domain, and how batches are cut."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from copd.config import Config, DigitsConfig, FilesConfig
from copd.planning.shapes import Shapes
from copd.recipes import OPD, Stage

WIDTH = 100
"""Columns of text for a terminal."""

_DIGITS = {"text": (38, 59, 0, 0, 0), "image": (16, 18, 1, 32, 32), "video": (22, 24, 5, 16, 16)}
"""Of a problem of the digits world: characters, at most so many, pictures, height and width."""

_TEMPLATE, _TIMESTAMP = 20, 15
"""Tokens around a turn and before each moment of a clip, read character by character."""

_PROMPTS = {"text": (256, 0, 0), "image": (256, 1024, 1), "video": (256, 4096, 16)}
"""Text tokens, visual tokens and pictures of any other prompt, by modality."""

DOMAIN_NAMES = ("text_tokens", "visual_tokens", "pictures", "mean", "deviation")
"""What can be assumed of a domain, after its name and a dot."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of completions."""

    mean: int
    square: float
    """Mean of their squares."""
    longest: float

    @classmethod
    def spread(cls, mean: int, limit: int, deviation: float) -> Lengths:
        """Return lengths with a deviation relative to the mean; the longest is three away.

        At the limit there is no deviation.
        """
        relative = deviation if mean < limit else 0.0
        longest = min(limit, mean * (1 + 3 * relative))
        return cls(mean, mean**2 * (1 + relative**2), longest)


@dataclass(frozen=True)
class Workload:
    """One batch: P prompts, and a group of G completions of each."""

    num_prompts: int
    group_size: int
    prompt_tokens: int
    """Mean, visual tokens included."""
    lengths: Lengths
    visual_tokens: int = 0
    """Tokens of a prompt that stand for pixels."""
    pictures: int = 0
    """Pictures, or pairs of frames, of a prompt; each attends to itself in the tower."""
    longest_prompt: int = 0
    """Prompts that are read together are padded to it."""

    @property
    def num_rows(self) -> int:
        """Completions of the batch."""
        return self.num_prompts * self.group_size

    @property
    def num_tokens(self) -> int:
        """Tokens of all completions."""
        return self.num_rows * self.lengths.mean

    @property
    def padded_prompt(self) -> int:
        """Tokens of a prompt, padding included."""
        return max(self.prompt_tokens, self.longest_prompt)

    @property
    def problem_tokens(self) -> int:
        """Tokens of a prompt and its completions, as micro-batches count them."""
        return self.prompt_tokens + self.group_size * self.lengths.mean

    def micro_batch(self, max_tokens: int) -> Workload:
        """Return the problems of one micro-batch: whole groups, one at least."""
        return self.of(max(1, min(self.num_prompts, max_tokens // self.problem_tokens)))

    def share(self, num_ranks: int) -> Workload:
        """Return the share of the rank with the most problems."""
        return self.of(math.ceil(self.num_prompts / num_ranks))

    def of(self, num_prompts: int) -> Workload:
        """Return the same with another number of prompts."""
        return replace(self, num_prompts=num_prompts)


@dataclass(frozen=True)
class Expected:
    """What a user expects of prompts and completions; what is None is assumed."""

    prompt_tokens: int | None = None
    """Of all domains, visual tokens included."""
    visual_tokens: int | None = None
    completion_tokens: int | None = None
    """Mean; completions count at their limit without it."""
    domains: Mapping[str, float] = field(default_factory=dict)
    """For one domain, such as "video.pictures"; see `DOMAIN_NAMES`."""


def find_workloads(
    config: Config, shapes: Shapes | None = None, expected: Expected | None = None
) -> dict[str, Workload]:
    """Return the batch of every domain, as expected or else assumed.

    Prompts have visual tokens only if the model has a vision tower.
    """
    return {
        name: _workload(config, name, shapes, expected or Expected()) for name in config.domains
    }


def _workload(config: Config, domain: str, shapes: Shapes | None, expected: Expected) -> Workload:
    limit = config.rollout.max_completion_tokens
    text, visual, pictures, longest = _prompt(config, domain, shapes)
    if expected.prompt_tokens is not None or expected.visual_tokens is not None:
        visual = expected.visual_tokens or 0
        text = (expected.prompt_tokens or _PROMPTS["text"][0] + visual) - visual
        pictures, longest = max(1, pictures) if visual else 0, 0
        if text < 0:
            raise ValueError(
                f"a prompt of {text + visual} tokens cannot have {visual} that stand for pixels. "
                "Raise --prompt-tokens: it counts them, too."
            )
    usual = (text, visual, pictures, expected.completion_tokens or limit, 0.5)
    found = {
        name: expected.domains.get(f"{domain}.{name}", value)
        for name, value in zip(DOMAIN_NAMES, usual, strict=True)
    }
    visual, pictures = int(found["visual_tokens"]), int(found["pictures"])
    mean = max(1, min(limit, int(found["mean"])))
    return Workload(
        config.rollout.num_prompts,
        config.rollout.group_size,
        max(1, int(found["text_tokens"]) + visual),
        Lengths.spread(mean, limit, found["deviation"]),
        visual,
        max(1, pictures) if visual else 0,
        longest,
    )


def _prompt(config: Config, domain: str, shapes: Shapes | None) -> tuple[int, int, int, int]:
    """Return text tokens, visual tokens, pictures and the longest prompt of a domain."""
    tower, settings = shapes.tower if shapes else None, config.domains[domain]
    if isinstance(settings, DigitsConfig):
        text, longest, pictures, height, width = _DIGITS[settings.modality]
        side = tower.side if tower else 1
        visual = pictures * math.ceil(height / side) * math.ceil(width / side) if tower else 0
        around = _TEMPLATE + (_TIMESTAMP * pictures if settings.modality == "video" else 0)
        return text + around, visual, pictures, longest + around + visual
    modality = "text"
    if isinstance(settings, FilesConfig):
        modality = domain if domain in _PROMPTS else "image"
        if settings.columns.videos or settings.columns.images:
            modality = "video" if settings.columns.videos else "image"
    text, visual, pictures = _PROMPTS[modality]
    return (text, visual, pictures, 0) if tower else (text, 0, 0, 0)


def describe_workloads(workloads: Mapping[str, Workload]) -> list[str]:
    """Describe the batch of every domain in lines of text, by the names of `--assume`."""
    lines = []
    for domain, load in workloads.items():
        lengths = load.lengths
        spread = max(0.0, lengths.square / lengths.mean**2 - 1) ** 0.5
        lines += wrapped(
            f"Domain {domain}: {load.num_prompts} problems, {load.group_size} completions each, "
            f"{domain}.text_tokens={load.prompt_tokens - load.visual_tokens}, "
            f"{domain}.visual_tokens={load.visual_tokens} in {domain}.pictures={load.pictures}; "
            f"completions of {domain}.mean={lengths.mean} tokens, {domain}.deviation={spread:.2g} "
            f"of it, the longest {lengths.longest:.0f}."
        )
    return lines


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """Wrap text for a terminal."""
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


@dataclass(frozen=True)
class BranchStep:
    """What a branch does in one step of a stage."""

    sampled: tuple[Workload, ...]
    """Its own batches."""
    scored: tuple[Workload, ...]
    """Batches of its students."""
    received: tuple[Workload, ...]
    """Its own batches that a teacher scores."""

    @classmethod
    def find(
        cls, stage: Stage, branch: str, workloads: Mapping[str, Workload], num_ranks: int = 1
    ) -> BranchStep:
        """Return the work of the busiest of a branch's ranks."""
        own, opd = stage.actions_of(branch), [a for a in stage.actions if isinstance(a, OPD)]
        chosen = (
            own,
            [a for a in opd if a.teacher == branch],
            [a for a in opd if a.branch == branch],
        )
        return cls(*(tuple(workloads[a.domain].share(num_ranks) for a in some) for some in chosen))


def decode_loops(
    loads: Sequence[Workload], *, max_rows: int, max_tokens: int
) -> Iterator[tuple[Workload, ...]]:
    """Cut batches into decode loops, as `copd.branch.sampling.plan_decode_loops` does."""
    loop: list[Workload] = []
    rows = tokens = 0
    for load in loads:
        left = load.num_prompts
        while left:
            by_rows = (max_rows - rows) // load.group_size
            by_tokens = (max_tokens - tokens) // load.prompt_tokens
            taken = min(left, max(min(by_rows, by_tokens), 0 if loop else 1))
            if taken:
                loop.append(load.of(taken))
                rows, tokens = rows + taken * load.group_size, tokens + taken * load.prompt_tokens
                left -= taken
            if left:
                yield tuple(loop)
                loop, rows, tokens = [], 0, 0
    if loop:
        yield tuple(loop)

"""Which single change of a configuration makes it fit, and how much each saves. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from copd.config import Config

Peak = Callable[[Config], int]


@dataclass(frozen=True)
class Change:
    """A change of the configuration, and the peak after it."""

    setting: str
    config: Config
    peak: int


def single_changes(
    config: Config, limit: int, peak: Peak, *, sees: bool, device: str
) -> list[Change]:
    """Every change that saves memory alone, those that fit first, in the order of what they cost
    in time and in results.

    Of a number the largest that fits, halving it, or else the smallest that still saves.
    """
    now = peak(config)
    tried = [
        Change(setting, changed, peak(changed))
        for setting, changed in _switches(config, sees=sees, device=device)
    ]
    tried += [
        found
        for section, key in (
            ("optimizer", "micro_batch_tokens"),
            ("rollout", "num_prompts"),
            ("rollout", "max_completion_tokens"),
        )
        if (found := _halved(config, section, key, limit, peak)) is not None
    ]
    useful = [change for change in tried if change.peak < now]
    return sorted(useful, key=lambda change: change.peak > limit)


def together(config: Config, limit: int, peak: Peak, changes: Sequence[Change]) -> list[Change]:
    """Changes one on top of the other, the one that saves most first, until they fit; all that
    still save where none of them is enough."""
    taken: list[Change] = []
    left = list(changes)
    while left and peak(config) > limit:
        tried = [(peak(_applied(config, change.setting)), i) for i, change in enumerate(left)]
        best, index = min(tried)
        if best >= peak(config):
            break
        setting = left.pop(index).setting
        config = _applied(config, setting)
        taken.append(Change(setting, config, best))
    return taken


def _switches(config: Config, *, sees: bool, device: str) -> Iterator[tuple[str, Config]]:
    model = config.model
    settings = [
        ("model.gradient_checkpointing = true", not model.gradient_checkpointing),
        (
            "model.frozen_vision = true",
            sees and not model.frozen_vision and model.branches == "full",
        ),
        ('model.dtype = "bfloat16"', model.dtype == "float32"),
        ('optimizer.type = "adamw_8bit"', device == "cuda" and config.optimizer.type == "adamw"),
        ('model.branches = "lora"', model.branches == "full"),
    ]
    for setting, can_be_made in settings:
        if can_be_made:
            yield setting, _applied(config, setting)


def _applied(config: Config, setting: str) -> Config:
    """The configuration with "section.key = value"."""
    place, _, word = setting.partition(" = ")
    section, _, key = place.partition(".")
    value = True if word == "true" else word.strip('"') if '"' in word else int(word)
    own = getattr(config, section).model_copy(update={key: value})
    return config.model_copy(update={section: own})


def _halved(config: Config, section: str, key: str, limit: int, peak: Peak) -> Change | None:
    value, best = getattr(getattr(config, section), key) // 2, None
    before = peak(config)
    while value >= 1:
        setting = f"{section}.{key} = {value}"
        changed = _applied(config, setting)
        found = Change(setting, changed, peak(changed))
        if found.peak >= before:
            break
        best, before, value = found, found.peak, value // 2
        if found.peak <= limit:
            break
    return best

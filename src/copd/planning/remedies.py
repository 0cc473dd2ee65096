"""Changes of a configuration that save memory, and how much each saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from copd.config import Config

Peak = Callable[[Config], int]
"""The memory that a configuration needs."""

_NUMBERS = (
    ("rollout", "max_rows"),
    ("optimizer", "micro_batch_tokens"),
    ("rollout", "num_prompts"),
    ("rollout", "max_completion_tokens"),
)


@dataclass(frozen=True)
class Change:
    """A change of the configuration, and the peak after it."""

    setting: str
    config: Config
    peak: int


def single_changes(
    config: Config, limit: int, peak: Peak, *, sees: bool, device: str
) -> list[Change]:
    """Find every change that saves memory alone.

    Those that fit come first, in the order of what they cost in time and in results. Of a number
    it is the largest that fits, halving it, or else the smallest that still saves.
    """
    model = config.model
    switches = {
        "model.gradient_checkpointing = true": not model.gradient_checkpointing,
        "model.frozen_vision = true": sees and not model.frozen_vision and model.branches == "full",
        'model.dtype = "bfloat16"': model.dtype == "float32",
        'optimizer.type = "adamw_8bit"': device == "cuda" and config.optimizer.type == "adamw",
        'model.branches = "lora"': model.branches == "full",
    }
    changes = [_change(config, setting, peak) for setting, can_be in switches.items() if can_be]
    changes += [
        change
        for section, key in _NUMBERS
        if (change := _halve(config, section, key, limit, peak)) is not None
    ]
    useful = [change for change in changes if change.peak < peak(config)]
    return sorted(useful, key=lambda change: change.peak > limit)


def together(config: Config, limit: int, peak: Peak, changes: Sequence[Change]) -> list[Change]:
    """Add up changes, the one that saves most first, until they fit or none of them saves more."""
    taken: list[Change] = []
    left, now = [change.setting for change in changes], peak(config)
    while left and now > limit:
        best = min((_change(config, setting, peak) for setting in left), key=lambda c: c.peak)
        if best.peak >= now:
            break
        taken.append(best)
        left.remove(best.setting)
        config, now = best.config, best.peak
    return taken


def _change(config: Config, setting: str, peak: Peak) -> Change:
    """Apply "section.key = value"."""
    place, _, word = setting.partition(" = ")
    section, _, key = place.partition(".")
    value = True if word == "true" else word.strip('"') if '"' in word else int(word)
    own = getattr(config, section).model_copy(update={key: value})
    changed = config.model_copy(update={section: own})
    return Change(setting, changed, peak(changed))


def _halve(config: Config, section: str, key: str, limit: int, peak: Peak) -> Change | None:
    value, best, before = getattr(getattr(config, section), key) // 2, None, peak(config)
    while value >= 1:
        found = _change(config, f"{section}.{key} = {value}", peak)
        if found.peak >= before:
            break
        best, before, value = found, found.peak, value // 2
        if found.peak <= limit:
            break
    return best

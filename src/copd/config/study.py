"""The configuration of a study: methods times seeds on one common run configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from copd.config.errors import sentences
from copd.config.load import parse_overrides, read_table, value_of, with_setting
from copd.config.merge import MergeConfig, NoMerge, SelectMerge
from copd.config.names import check_known
from copd.config.sections import Count, Name, NonNegativeInt, Section
from copd.config.tree import Config

_REMEDY = "Change it in the study file, or pass --{path} VALUE."
_SET_BY_STUDY = ("output_dir", "seed", "max_tokens")
"""Settings of a run that the study chooses itself."""


class MethodConfig(Section):
    """One method: its changes to the common configuration and its columns in the tables."""

    label: str | None = None
    """Its column in the tables; by default the method's name."""
    budget: Literal["equal", "own"] = "equal"
    """"own" exempts the method from the equal budget; the tables say so."""
    merges: dict[Name, MergeConfig] = Field(default={})
    """Further merges of the trained branches, each with a column of its own."""
    overrides: dict[str, Any] = Field(default={})
    """Settings on top of the common ones, including the recipe."""

    @model_validator(mode="after")
    def _check(self) -> MethodConfig:
        for name, merge in self.merges.items():
            if isinstance(merge, NoMerge | SelectMerge):
                raise ValueError(
                    f"merges.{name} must make a new model: got type {merge.type!r}. "
                    "Set evaluation.branches = true to have every branch as a column."
                )
        return self


class Study(Section):
    """A complete study; its JSON alone is enough to continue it."""

    output_dir: Path = Path("runs/study")
    """Folder of the study."""
    title: str = "Methods compared"
    """Title of its tables."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Every method runs once with each seed."""
    jobs: Count = 2
    """Runs side by side, each in a process with one thread."""
    equal: Literal["branch_steps", "tokens"] = "branch_steps"
    """The budget that all methods share."""
    tokens: Count | None = None
    """Completion tokens that all branches of a run may sample, with equal = "tokens"."""
    base: Path | None = None
    """Run configuration to build on, relative to the study file; its recipe is ignored."""
    common: dict[str, Any] = Field(default={})
    """Settings of every run, on top of those of `base`."""
    methods: Annotated[dict[Name, MethodConfig], Field(min_length=1)]
    """The methods to compare, by name."""

    @model_validator(mode="after")
    def _check(self) -> Study:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds must name each seed once: got {list(self.seeds)}. Remove the repetition."
            )
        if (self.equal == "tokens") != (self.tokens is not None):
            got = "no tokens" if self.tokens is None else f"tokens = {self.tokens}"
            raise ValueError(
                f'tokens belongs to equal = "tokens" and must be given with it: got equal = '
                f'"{self.equal}" and {got}. Set both, or neither.'
            )
        return self

    def settings(self, method: str) -> dict[str, Any]:
        """Return the method's settings on top of the common ones, not validated."""
        return overlay(self.common, self.methods[method].overrides)

    def config(self, method: str, extra: Mapping[str, Any]) -> Config:
        """Return the configuration of a method's run; `extra` is what the study itself sets."""
        settings = self.settings(method)
        if taken := [key for key in _SET_BY_STUDY if key in settings]:
            raise ValueError(
                f"method {method!r} cannot set {taken[0]}: got {settings[taken[0]]!r}, but the "
                "study chooses it for every run. Remove it; seeds and tokens are set at the top."
            )
        try:
            return Config.model_validate(overlay(settings, extra))
        except ValidationError as error:
            remedy = f"Change it in the study file, or pass --methods.{method}.{{path}} VALUE."
            found = sentences(error, Config, remedy=remedy)
            raise ValueError("\n".join(f"method {method!r}: {s}" for s in found)) from None


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """Load a study from a TOML file, with overrides on top and `base` merged into `common`.

    Overrides are `--seeds [0,1]`, `--common.x.y VALUE` and `--methods.NAME.x.y VALUE`.
    """
    raw = read_table(Path(path))
    methods = raw.get("methods", {})
    for keys, text in parse_overrides(overrides).items():
        if keys[0] == "methods" and len(keys) > 1:
            check_known("--methods.NAME", keys[1], methods, "method of the study")
        raw = with_setting(raw, keys, value_of(text))
    if isinstance(base := raw.pop("base", None), str):
        below = read_table(Path(path).parent / base)
        for key in ("recipe", *_SET_BY_STUDY):
            below.pop(key, None)
        raw["common"] = overlay(below, raw.get("common", {}))
    if isinstance(methods := raw.get("methods"), dict):
        raw["methods"] = {name: _with_overrides(method) for name, method in methods.items()}
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise ValueError("\n".join(sentences(error, Study, remedy=_REMEDY))) from None


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` into `below`, table by table; a table of another `type` replaces the old."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            is_same = value.get("type", old.get("type")) == old.get("type")
            merged[key] = overlay(old, value) if is_same else value
    return merged


def _with_overrides(method: object) -> object:
    """Move the settings of a run from a method's table to its `overrides`."""
    if not isinstance(method, dict) or "overrides" in method:
        return method
    own = {key: method[key] for key in ("label", "budget", "merges") if key in method}
    return {**own, "overrides": {k: v for k, v in method.items() if k not in own}}

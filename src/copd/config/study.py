"""The configuration of a study: methods times seeds on one common run configuration.

Knows no torch and no plan.
"""

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
_OF_A_RUN = ("output_dir", "seed", "max_tokens")
"""Settings of a run that a study chooses itself."""


class MethodConfig(Section):
    """One method: what it changes in the common configuration, and how it enters the tables."""

    label: str | None = None
    """Its column in the tables; by default the method's name."""
    budget: Literal["equal", "own"] = "equal"
    """"own" takes the method out of the equal budget; the results name it."""
    merges: dict[Name, MergeConfig] = Field(default={})
    """Further merges of the trained branches, each one more column."""
    overrides: dict[str, Any] = Field(default={})
    """Settings on top of the common ones, the recipe among them."""

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
    """A study, complete: it is continued from this value's JSON alone."""

    output_dir: Path = Path("runs/study")
    """Folder of the study."""
    title: str = "Methods compared"
    """Title of its tables."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Every method runs once with each."""
    jobs: Count = 2
    """Runs side by side, each a process with one thread."""
    equal: Literal["branch_steps", "tokens"] = "branch_steps"
    """What all methods get the same amount of."""
    tokens: Count | None = None
    """Completion tokens that the branches of a run may sample, with equal = "tokens"."""
    base: Path | None = None
    """A run configuration to build on, relative to the study file; its recipe is not used."""
    common: dict[str, Any] = Field(default={})
    """Settings of every run, on top of those of `base`."""
    methods: Annotated[dict[Name, MethodConfig], Field(min_length=1)]
    """What is compared, by name."""

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
        """The method's settings on top of the common ones, not yet checked."""
        return overlay(self.common, self.methods[method].overrides)

    def config(self, method: str, extra: Mapping[str, Any]) -> Config:
        """The configuration of a run of a method; `extra` is what the study decides itself."""
        settings = self.settings(method)
        if taken := [key for key in _OF_A_RUN if key in settings]:
            raise ValueError(
                f"method {method!r} cannot set {taken[0]}: got {settings[taken[0]]!r}, but the "
                "study chooses it for every run. Remove it; seeds and tokens are set at the top."
            )
        return checked(overlay(settings, extra), f"method {method!r}", f"methods.{method}.")


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """The study in a TOML file with overrides on top, `base` read into `common`.

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
        dropped = ("recipe", *_OF_A_RUN)
        below = {key: value for key, value in below.items() if key not in dropped}
        raw["common"] = overlay(below, raw.get("common", {}))
    if isinstance(methods := raw.get("methods"), dict):
        raw["methods"] = {name: _with_overrides(method) for name, method in methods.items()}
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise ValueError("\n".join(sentences(error, Study, remedy=_REMEDY))) from None


def checked(raw: Mapping[str, Any], what: str, prefix: str) -> Config:
    """A run configuration from plain values; mistakes are sentences about `what`."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        remedy = f"Change it in the study file, or pass --{prefix}{{path}} VALUE."
        found = sentences(error, Config, remedy=remedy)
        raise ValueError("\n".join(f"{what}: {sentence}" for sentence in found)) from None


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `above` on those of `below`, table by table; another `type` starts afresh."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            is_same = value.get("type", old.get("type")) == old.get("type")
            merged[key] = overlay(old, value) if is_same else value
    return merged


def _with_overrides(method: object) -> object:
    """The settings of a run below a method, told from the method's own."""
    if not isinstance(method, dict) or "overrides" in method:
        return method
    own = {key: method[key] for key in ("label", "budget", "merges") if key in method}
    return {**own, "overrides": {k: v for k, v in method.items() if k not in own}}

"""Reads a configuration: TOML by a person or JSON by copd, then overrides. Knows no rule."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from copd.config.domains import FilesConfig
from copd.config.errors import sentences
from copd.config.merge import MergeConfig
from copd.config.names import check_known
from copd.config.schema import locate
from copd.config.tree import Config

Keys = tuple[str, ...]


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in `path` (TOML, or JSON if it ends in .json) with overrides on top.

    Overrides are command-line words: `--recipe.rounds 3`, `--optimizer.learning_rate=2e-4`. Values
    are TOML; what is not, is text. Each mistake becomes one line of the ValueError.
    """
    return _overridden(read_table(Path(path)), parse_overrides(overrides))


def load_run(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration a run was begun with; overrides may only move it to other processes.

    With `--engine.type` all that was set for its engine so far is forgotten.
    """
    raw, texts = read_table(path), parse_overrides(overrides)
    for keys in texts:
        if keys[0] != "engine":
            raise ValueError(
                f"A run goes on with the settings it was begun with: got --{'.'.join(keys)}, "
                "expected settings of engine only. Leave it out, or train in another output_dir."
            )
    return _overridden({**raw, "engine": {}} if ("engine", "type") in texts else raw, texts)


def _overridden(raw: Mapping[str, Any], texts: Mapping[Keys, str]) -> Config:
    for keys, text in texts.items():
        raw = with_setting(raw, keys, value_of(text))
    for keys in _read_as_text(raw, texts):
        raw = with_setting(raw, keys, texts[keys])
    return parse_config(raw)


def parse_config(raw: Mapping[str, object]) -> Config:
    """A whole configuration from plain values."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ValueError("\n".join(sentences(error, Config))) from None


def parse_files(path: str, overrides: Sequence[str] = ()) -> FilesConfig:
    """Settings of a domain of files outside a run: `--columns.prompt question`."""
    raw: dict[str, Any] = {"type": "files", "path": path}
    for keys, text in parse_overrides(overrides).items():
        raw = with_setting(raw, keys, value_of(text))
    try:
        return FilesConfig.model_validate(raw)
    except ValidationError as error:
        found = sentences(error, FilesConfig, remedy="Pass another value to --{path}.")
        raise ValueError("\n".join(found)) from None


def parse_files_run(path: str, model: str, overrides: Sequence[str] = ()) -> Config:
    """A run's settings for one domain of files and a model that is only asked.

    Overrides are those of the domain, as in `parse_files`, and of a run: `--rollout.group_size 4`.
    """
    texts = parse_overrides(overrides)
    of_run = {keys: text for keys, text in texts.items() if keys[0] in Config.model_fields}
    rest = [f"--{'.'.join(keys)}={text}" for keys, text in texts.items() if keys not in of_run]
    raw: dict[str, Any] = {
        "model": {"path": model},
        "domains": {"data": parse_files(path, rest).model_dump()},
        "recipe": {"type": "experts", "steps": 1},
        "evaluation": {"num_problems": 1},
    }
    for keys, text in of_run.items():
        raw = with_setting(raw, keys, value_of(text))
    return parse_config(raw)


def parse_merge(raw: Mapping[str, object]) -> MergeConfig:
    """One way to merge from plain values, for merging outside a run."""
    try:
        return TypeAdapter(MergeConfig).validate_python(dict(raw))
    except ValidationError as error:
        found = sentences(error, MergeConfig, remedy="Pass another value to --{path}.")
        raise ValueError("\n".join(found)) from None


def parse_overrides(words: Sequence[str]) -> dict[Keys, str]:
    """Dotted keys and the text of their values; the last of a repeated key wins."""
    found: dict[Keys, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not all(name.split(".")):
            raise ValueError(
                f"An override must look like --section.key VALUE: got {word!r}. "
                "Put quotes around a value that has spaces."
            )
        if not has_value:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{name} needs a value: got none. Pass --{name} VALUE.")
            value = rest.pop(0)
        found[tuple(name.split("."))] = value
    return found


def read_table(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"The config must be a file: got {str(path)!r}, which is not one. "
            "Check the path; examples are in configs/."
        )
    language, parse = ("JSON", json.loads) if path.suffix == ".json" else ("TOML", tomllib.loads)
    try:
        raw = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:  # wrong syntax, wrong encoding
        raise ValueError(
            f"{path} must be valid {language}: got {error}. Correct the file there."
        ) from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a table of settings: got {raw!r}. Correct the file.")
    return raw


def value_of(text: str) -> object:
    """The TOML value that `text` spells, or the text itself."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _read_as_text(raw: Mapping[str, Any], texts: Mapping[Keys, str]) -> list[Keys]:
    """Overrides that look like a number, such as a folder named 2024, where text is expected."""
    try:
        Config.model_validate(raw)
    except ValidationError as error:
        wanted = [e for e in error.errors() if e["type"] in ("string_type", "path_type")]
        return [k for e in wanted if (k := locate(Config, e["loc"]).keys) in texts]
    return []


def with_setting(
    table: Mapping[str, Any], keys: Keys, value: object, above: Keys = ()
) -> dict[str, Any]:
    """A copy of the table in which the dotted key has the value."""
    key, *rest = keys
    if not rest:
        return {**table, key: value}
    path = ".".join((*above, key))
    if above == ("domains",):  # a domain cannot be started by one of its settings
        check_known("--domains.NAME", key, table, "domain of the config")
    below = table.get(key, {})
    if not isinstance(below, dict):
        raise ValueError(
            f"--{path}.{'.'.join(rest)} needs {path} to be a table: got {below!r} in the config. "
            f"Replace it as a whole with --{path} '{{{rest[0]} = ...}}'."
        )
    return {**table, key: with_setting(below, tuple(rest), value, (*above, key))}

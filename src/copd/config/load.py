"""Loading of a configuration: a TOML file, or JSON that copd wrote, then overrides."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from copd.config.domains import FilesConfig
from copd.config.errors import validate
from copd.config.merge import MergeConfig
from copd.config.names import check_known
from copd.config.schema import locate
from copd.config.tree import Config

Keys = tuple[str, ...]
_REMEDY = "Pass another value to --{path}."


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Load the configuration of a run from a file, with overrides on top.

    Args:
        path: A TOML file, or JSON if its name ends in .json.
        overrides: Command-line words: `--recipe.rounds 3`, `--optimizer.learning_rate=2e-4`. The
            values are TOML, or text where they are not.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are mistakes, with one line for each.
    """
    return _overridden(read_table(Path(path)), parse_overrides(overrides))


def load_run(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Load the configuration that a run was started with, to resume it.

    Args:
        path: The run's config.json.
        overrides: Settings of the engine only, as in `load_config`. With `--engine.type` the former
            settings of the engine are dropped.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an override is not one of the engine, or there are other mistakes.
    """
    raw, texts = read_table(path), parse_overrides(overrides)
    for keys in texts:
        if keys[0] != "engine":
            raise ValueError(
                f"A run is resumed with the settings it was started with: got --{'.'.join(keys)}, "
                "expected settings of engine only. Leave it out, or train in another output_dir."
            )
    return _overridden({**raw, "engine": {}} if ("engine", "type") in texts else raw, texts)


def parse_config(raw: Mapping[str, object]) -> Config:
    """Validate a whole configuration.

    Args:
        raw: Plain values, as read from TOML or JSON.

    Returns:
        The configuration.
    """
    return validate(Config, raw)


def parse_files(path: str, overrides: Sequence[str] = ()) -> FilesConfig:
    """Build a domain of files without a run.

    Args:
        path: The data, as in `domains.NAME.path`.
        overrides: Settings of the domain: `--columns.prompt question`.

    Returns:
        The configuration of the domain.
    """
    raw = _with_values({"type": "files", "path": path}, parse_overrides(overrides))
    return validate(FilesConfig, raw, remedy=_REMEDY)


def parse_files_run(path: str, model: str, overrides: Sequence[str] = ()) -> Config:
    """Build a run that samples a model on one domain of files and does not train it.

    Args:
        path: The data, as in `domains.NAME.path`.
        model: The model, as in `model.path`.
        overrides: Settings of the domain, as in `parse_files`, and of a run:
            `--rollout.group_size 4`.

    Returns:
        The configuration; the domain is named "data".
    """
    texts = parse_overrides(overrides)
    of_run = {keys: text for keys, text in texts.items() if keys[0] in Config.model_fields}
    of_data = [f"--{'.'.join(keys)}={text}" for keys, text in texts.items() if keys not in of_run]
    raw: dict[str, Any] = {
        "model": {"path": model},
        "domains": {"data": parse_files(path, of_data).model_dump()},
        "recipe": {"type": "experts", "steps": 1},
        "evaluation": {"num_problems": 1},
    }
    return parse_config(_with_values(raw, of_run))


def parse_merge(raw: Mapping[str, object]) -> MergeConfig:
    """Validate the settings of a merge outside a run.

    Args:
        raw: Plain values, as in `recipe.merge`.

    Returns:
        The configuration of the merge.
    """
    return validate(MergeConfig, dict(raw), remedy=_REMEDY)


def parse_overrides(words: Sequence[str]) -> dict[Keys, str]:
    """Split command-line words into dotted keys and texts; the last of a repeated key wins."""
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
    """Read a TOML or JSON file."""
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
    """Parse a TOML value; return the text itself if it is none."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def with_setting(
    table: Mapping[str, Any], keys: Keys, value: object, above: Keys = ()
) -> dict[str, Any]:
    """Return a copy of the table in which the dotted key has the value."""
    key, *rest = keys
    if not rest:
        return {**table, key: value}
    path = ".".join((*above, key))
    if above == ("domains",):  # one setting does not make a new domain
        check_known("--domains.NAME", key, table, "domain of the config")
    below = table.get(key, {})
    if not isinstance(below, dict):
        raise ValueError(
            f"--{path}.{'.'.join(rest)} needs {path} to be a table: got {below!r} in the config. "
            f"Replace it as a whole with --{path} '{{{rest[0]} = ...}}'."
        )
    return {**table, key: with_setting(below, tuple(rest), value, (*above, key))}


def _with_values(raw: Mapping[str, Any], texts: Mapping[Keys, str]) -> dict[str, Any]:
    for keys, text in texts.items():
        raw = with_setting(raw, keys, value_of(text))
    return dict(raw)


def _overridden(raw: Mapping[str, Any], texts: Mapping[Keys, str]) -> Config:
    raw = _with_values(raw, texts)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        # Where text is expected, a value such as 2024 is text: the name of a folder, say.
        for details in error.errors():
            keys = locate(Config, details["loc"]).keys
            if details["type"] in ("string_type", "path_type") and keys in texts:
                raw = with_setting(raw, keys, texts[keys])
    return parse_config(raw)

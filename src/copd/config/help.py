"""The list of all settings with defaults and descriptions, for --help."""

import textwrap
from pathlib import Path

from pydantic.fields import FieldInfo

from copd.config.schema import SettingsTable, tables, type_of, type_text
from copd.config.tree import Config

_WIDTH = 100
_VALUE_COLUMN = 24
_MEANING_COLUMN = 50


def describe_settings() -> str:
    """Describe all tables of the configuration file in order, one setting per line.

    Returns:
        Text of at most 100 columns.
    """
    shown = dict.fromkeys(tables(Config))  # each once: recipe.merge occurs in two recipes
    return "\n\n".join(_describe(table) for table in shown)


def _describe(table: SettingsTable) -> str:
    title = f"[{table.path}]" if table.path else "(top of the file)"
    kind = type_of(table.model)
    chosen = f'  type = "{kind}"' if kind else ""
    about = "  # " + (table.model.__doc__ or "").split("\n")[0]
    rows = [_row(key, field) for key, field in table.settings.items() if key != "type"]
    return "\n".join([f"{title}{chosen}", about, *rows])


def _row(key: str, field: FieldInfo) -> str:
    default = "(required)" if field.is_required() else f"= {_default(field.default)}"
    left = f"  {key} ".ljust(_VALUE_COLUMN) + f"{type_text(field.annotation)} {default}"
    meaning = textwrap.wrap(field.description or "", _WIDTH - _MEANING_COLUMN)
    if len(left) < _MEANING_COLUMN:
        left, meaning = left.ljust(_MEANING_COLUMN) + meaning[0], meaning[1:]
    return "\n".join([left, *(" " * _MEANING_COLUMN + line for line in meaning)])


def _default(value: object) -> str:
    match value:
        case None:
            return "(unset)"
        case str() | Path():
            return f'"{value}"'
        case tuple():
            return str(list(value))
        case bool():
            return str(value).lower()
    return str(value)

"""The structure of the configuration classes: their tables and settings, and where an error is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class SettingsTable:
    """A table of the configuration file, in one of its variants."""

    path: str
    model: type[BaseModel]

    @property
    def settings(self) -> dict[str, FieldInfo]:
        """The keys with values; keys with tables are tables of their own."""
        fields = self.model.model_fields
        return {key: field for key, field in fields.items() if not models_in(field.annotation)}


@dataclass(frozen=True)
class Place:
    """A place in the configuration."""

    keys: tuple[str, ...]
    """Keys as in the file, without the labels that pydantic inserts for variants."""
    annotation: Any
    """The expected type; None if there is no such key."""
    parent: type[BaseModel] | None
    """The class with the last key; None in a table with free keys."""
    siblings: tuple[type[BaseModel], ...]
    """The variants that `parent` is one of, itself included."""

    @property
    def path(self) -> str:
        return ".".join(self.keys)


def tables(model: type[BaseModel], path: str = "") -> Iterator[SettingsTable]:
    """Yield every table below `model`, depth first, variants in a row."""
    yield SettingsTable(path, model)
    for key, field in model.model_fields.items():
        below = f"{path}.{key}".lstrip(".") + (".NAME" if _is_dict(field.annotation) else "")
        for variant in models_in(field.annotation):
            yield from tables(variant, below)


def setting_paths(model: type[BaseModel]) -> list[str]:
    """List the dotted names of all tables and settings, each once."""
    found = tables(model)
    paths = [f"{t.path}.{key}".lstrip(".") for t in found for key in t.model.model_fields]
    return list(dict.fromkeys(paths))


def locate(root: Any, location: Sequence[str | int]) -> Place:
    """Find the place of a validation error by its location."""
    node, keys, parent, siblings = root, [], None, models_in(root)
    for key in location:
        variants = models_in(node)
        if get_origin(node) is tuple and (entries := models_in(get_args(node)[0])):
            node, parent, siblings = get_args(node)[0], None, entries
            keys.append(str(key))
        elif _is_dict(node):
            node, parent = get_args(node)[1], None
            keys.append(str(key))
        elif len(variants) > 1:
            siblings = variants
            node = next((v for v in variants if type_of(v) == key), None)
        elif variants:
            parent, node = variants[0], variants[0].model_fields.get(str(key))
            node = node.annotation if node else None
            siblings = siblings if parent in siblings else (parent,)
            keys.append(str(key))
        else:
            node = next((a for a in get_args(node) if _is_dict(a) and "dict" in str(key)), None)
    return Place(tuple(keys), node, parent, siblings)


def models_in(annotation: Any) -> tuple[type[BaseModel], ...]:
    """Return the configuration classes in a type, also in unions and in tables with free keys."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return models_in(args[0])
    if origin is dict:
        return models_in(args[1])
    return sum(map(models_in, args), ()) if origin in (Union, UnionType) else ()


def type_of(model: type[BaseModel]) -> str | None:
    """Return the value of a variant's key `type`."""
    field = model.model_fields.get("type")
    return get_args(field.annotation)[0] if field else None


def type_text(annotation: Any) -> str:
    """Describe a type for a person who writes a configuration file."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0])
    if origin is Literal:
        return " | ".join(f'"{arg}"' for arg in args)
    if origin in (Union, UnionType):
        return " | ".join(type_text(arg) for arg in args if arg is not NoneType)
    if origin is tuple:
        return "list"
    if origin is dict:
        return "table"
    return {"int": "integer", "float": "number", "bool": "true | false"}.get(
        annotation.__name__, "text"
    )


def _is_dict(annotation: Any) -> bool:
    return get_origin(annotation) is dict

"""Validation with errors as sentences: what, got, expected, remedy."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from copd.config.names import closest, listed, suggestion
from copd.config.schema import Place, locate, models_in, setting_paths, type_of

_TABLE_ERRORS = ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found")
_EXPECTED = {
    **dict.fromkeys(_TABLE_ERRORS, "must be a table, such as {key = VALUE}"),
    "tuple_type": 'must be a list, such as ["a", "b"]',
    "path_type": "must be text",
    "string_type": "must be text",
    "missing": "must have one more entry",
}
_REMEDY = "Change it in the config file, or pass --{path} VALUE."


def validate(root: Any, raw: object, *, remedy: str = _REMEDY) -> Any:
    """Validate plain values as the type `root`; raise a ValueError of one line per mistake."""
    try:
        return TypeAdapter(root).validate_python(raw)
    except ValidationError as error:
        raise ValueError("\n".join(sentences(error, root, remedy=remedy))) from None


def sentences(error: ValidationError, root: Any, *, remedy: str = _REMEDY) -> list[str]:
    """Write one sentence per mistake; `root` is the type that was validated."""
    places: dict[str, list[tuple[ErrorDetails, Place]]] = {}
    for details in error.errors(include_url=False):
        place = locate(root, details["loc"])
        places.setdefault(place.path, []).append((details, place))
    # A value that fits neither of two types is reported for both: skip the less specific place.
    innermost = [p for p in places if not p or not any(q.startswith(f"{p}.") for q in places)]
    return [_sentence(path, places[path], root, remedy) for path in innermost]


def _sentence(path: str, found: list[tuple[ErrorDetails, Place]], root: Any, remedy: str) -> str:
    details, place = found[0]
    value = details["input"]
    match details["type"]:
        case "value_error":
            return details["msg"].removeprefix("Value error, ")
        case "missing" if not isinstance(details["loc"][-1], int):
            return _missing(path, place)
        case "extra_forbidden":
            return _unknown(path, value, place, root)
        case "union_tag_not_found" if isinstance(value, dict):
            return (
                f"{path}.type is missing: expected one of {listed(_types(place))}. "
                f"Add it to the config file, or pass --{path}.type VALUE."
            )
        case "union_tag_invalid":
            tag, types = str(value["type"]), _types(place)
            expected = f"expected one of {listed(types)}"
            return f"{path}.type is unknown: got {tag!r}, {expected}. {suggestion(tag, types)}"
    expected = " or ".join(dict.fromkeys(_expectation(each) for each, _ in found))
    is_entry = isinstance(details["loc"][-1], int) and details["type"] != "missing"
    subject = f"Every entry of {path}" if is_entry else path
    return f"{subject} {expected}: got {_short(value)}. {remedy.format(path=path)}"


def _missing(path: str, place: Place) -> str:
    if models_in(place.annotation):
        return f"{path} is missing: expected a table. Add [{path}] to the config file."
    field = place.parent.model_fields[place.keys[-1]] if place.parent else None
    meaning = " ".join((field.description or "").split()).rstrip(".") if field else "a value"
    return (
        f"{path} is missing: it must be chosen ({meaning}). "
        f"Add it to the config file, or pass --{path} VALUE."
    )


def _unknown(path: str, value: object, place: Place, root: Any) -> str:
    *above, key = place.keys
    table = ".".join(above)
    owners = [str(type_of(each)) for each in place.siblings if key in each.model_fields]
    if owners and place.parent:
        return (
            f"{path} does not belong to {table}.type {type_of(place.parent)!r}: got "
            f"{_short(value)}, expected only with {' or '.join(map(repr, owners))}. "
            f'Remove it, or set {table}.type = "{owners[0]}".'
        )
    known = list(place.parent.model_fields) if place.parent else []
    paths = setting_paths(root)
    near = closest(key, known)
    elsewhere = next((p for p in paths if p.endswith(f".{key}")), None) or closest(path, paths)
    match = ".".join([*above, near]) if near else elsewhere
    help_text = f"Did you mean {match}?" if match else "Remove it."
    where = f"{table} has" if table else "the settings are"
    return f"{path} is not a setting: got {_short(value)}, {where} {', '.join(known)}. {help_text}"


def _types(place: Place) -> list[str]:
    return [str(type_of(model)) for model in models_in(place.annotation)]


def _expectation(details: ErrorDetails) -> str:
    """Turn pydantic's message into a claim about a setting."""
    if details["type"] in _EXPECTED:
        return _EXPECTED[details["type"]]
    _, _, claim = details["msg"].partition(" should ")
    claim = claim.split(" after validation")[0].replace("a valid integer", "an integer")
    claim = claim.replace("greater than or equal to", "at least").replace("a valid ", "a ")
    return (
        f"must {claim.replace('less than or equal to', 'at most').replace('greater than', 'above')}"
    )


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."

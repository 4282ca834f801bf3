"""From plain data to checked dataclasses: nested dictionaries and command-line text in, errors that name the field."""

import dataclasses
import types
import typing
from typing import Any

from dne_lab.errors import LabError, unknown


def names(cls: type, prefix: str = "") -> list[str]:
    """All dotted names of the simple fields of a nested dataclass; "options.NAME" for a dictionary called options."""
    found: list[str] = []
    for f in dataclasses.fields(cls):
        kind = typing.get_type_hints(cls)[f.name]
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        name = f"{prefix}{f.name}.NAME" if typing.get_origin(kind) is dict else prefix + f.name
        found += names(kind, f"{prefix}{f.name}.") if nested else [name]
    return found


def build(cls: type, tree: dict[str, Any], prefix: str = "") -> Any:
    """Builds a dataclass from a nested dictionary; missing fields take their defaults.

    Raises:
        LabError: an unknown field, a value of the wrong type, or what the dataclass itself refuses.
    """
    if not isinstance(tree, dict):
        allowed = ", ".join(names(cls, prefix))
        raise LabError(f"{prefix.rstrip('.') or 'configuration'} = {tree!r}: is a group of fields: {allowed}.")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for name, value in tree.items():
        if not known:
            raise LabError(f"unknown field {prefix + name!r}: {prefix.rstrip('.')} has no fields here. Leave it out.")
        if name not in known:
            raise unknown("field", prefix + name, [prefix + n for n in known])
        kind = hints[name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            values[name] = build(kind, value, f"{prefix}{name}.")
        else:
            values[name] = _convert(prefix + name, value, kind)
    try:
        return cls(**values)
    except LabError as error:
        if prefix and prefix not in str(error):
            raise LabError(f"{prefix.rstrip('.')}: {error}") from None
        raise


_WANTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LISTS = {int: "a list of whole numbers, e.g. 50,10,10", str: "a list of names, e.g. crop,flip"}


def _convert(name: str, value: Any, kind: Any) -> Any:
    """``value`` (perhaps text from the command line) as ``kind``, or an error that names the field."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "")):
            return None
        return _convert(name, value, next(a for a in args if a is not type(None)))
    try:
        if origin is tuple:
            parts = [p for p in value.split(",") if p.strip()] if isinstance(value, str) else value
            parts = parts if isinstance(parts, (list, tuple)) else [parts]
            return tuple(_convert(name, p, args[0]) for p in parts)
        if origin is dict or kind is dict:
            if not isinstance(value, dict):
                raise ValueError
            return dict(value)
        if kind is bool:
            table = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
            return value if isinstance(value, bool) else table[str(value).strip().lower()]
        if kind is int:
            if isinstance(value, float) and not value.is_integer():
                raise ValueError
            return int(value) if not isinstance(value, bool) else int("not a number")
        if kind is float:
            return float(value) if not isinstance(value, bool) else float("not a number")
        if kind is str:
            return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value).strip()
    except (ValueError, KeyError, TypeError) as error:
        wanted = _LISTS.get(args[0], "a list of numbers") if origin is tuple else _WANTED.get(kind, "a dictionary")
        raise LabError(f"{name} = {value!r}: must be {wanted}.") from error
    raise TypeError(f"{name}: a field of type {kind} cannot be configured")

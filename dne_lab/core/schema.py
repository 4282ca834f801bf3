"""Data from outside (files, a command line) checked by pydantic: what is wrong becomes a sentence.

Two kinds of class: `settings` are chosen by a user, so their fields take the text of a command line too. A `document`
was written by this program, so its fields take what JSON has for them and nothing else. Both are frozen dataclasses.
"""

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import AllowInfNan, BeforeValidator, Strict, TypeAdapter
from pydantic.dataclasses import dataclass as checked
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema, from_json

from dne_lab.core.errors import LabError, brief, reason, unknown
from dne_lab.core.files import check_regular

T = TypeVar("T")
CLOSED = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")
OPEN = pydantic.ConfigDict(extra="ignore", allow_inf_nan=False)

# What one field takes -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class OneOf:
    """One of some names: ``Annotated[str, OneOf(("ce", "bce"), "loss")]``; ``what`` it is called in errors, default:
    the field's own name."""

    names: tuple[str, ...]
    what: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: pydantic.GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.names)}

    def _check(self, value: str) -> str:
        if value not in self.names:
            raise PydanticCustomError("one_of", "unknown name", {"names": self.names, "what": self.what})
        return value


@dataclasses.dataclass(frozen=True)
class Like:
    """A dictionary or list that has to fit a schema and stays as it is: whole numbers are not made fractions, keys that
    the schema does not know are kept in their place."""

    schema: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
        def keep(value: Any, check: Callable[[Any], Any]) -> Any:
            check(value)
            return value

        return core_schema.no_info_wrap_validator_function(keep, handler.generate_schema(_strict(self.schema)))


def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("none", "") else value


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _switch(value: Any) -> Any:
    names = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return names.get(str(value).strip().lower(), value) if isinstance(value, str | int) else value


def _text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return value.strip() if isinstance(value, str) else str(value) if isinstance(value, int | float) else value


def _several(value: Any) -> Any:
    if isinstance(value, str):
        listed = "" if value.strip().lower() == "none" else value  # as `presets.text` prints a list of nothing
        return tuple(part for part in listed.split(",") if part.strip())
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, int | float) else value


def _from_text(hint: Any) -> Any:
    """A field's type, taking text as well: "7" for int, "12,1" for tuple[int, ...], "none" for None."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return Annotated[(_from_text(args[0]), *args[1:])]
    if origin in (types.UnionType, typing.Union) and type(None) in args and len(args) == 2:
        other = next(a for a in args if a is not type(None))
        return Annotated[_from_text(other) | None, BeforeValidator(_none)]
    if origin is tuple and args[1:] == (...,):
        return Annotated[tuple[_from_text(args[0]), ...], BeforeValidator(_several)]  # type: ignore[misc]
    if hint is float:
        return Annotated[float, Strict(), AllowInfNan(False), BeforeValidator(_number)]
    plain: dict[Any, Callable[[Any], Any]] = {int: _whole, bool: _switch, str: _text}
    return Annotated[hint, Strict(), BeforeValidator(plain[hint])] if hint in plain else hint


def _strict(hint: Any) -> Any:
    """A field's type without conversions, all the way down."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return hint if any(isinstance(a, Like) for a in args) else Annotated[(_strict(args[0]), *args[1:])]
    if origin in (types.UnionType, typing.Union):
        return functools.reduce(lambda a, b: a | b, map(_strict, args))
    if origin in (list, dict, tuple):
        return origin[tuple(a if a is ... else _strict(a) for a in args)]
    return Annotated[hint, Strict()] if hint in (int, float, bool, str) else hint


# The classes ----------------------------------------------------------------------------------------------------------


@dataclass_transform(field_specifiers=(dataclasses.field,), frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass that a user fills: every field takes the text of a command line as well; a wrong value is a
    `LabError` that names the field."""
    return _made(cls, _from_text, CLOSED, False)


@dataclass_transform(field_specifiers=(dataclasses.field,), frozen_default=True, kw_only_default=True)
def document(cls: type[T]) -> type[T]:
    """A frozen dataclass, keywords only, of what a file of this program holds; unknown keys are refused by `load`."""
    return _made(cls, _strict, OPEN, True)


def _made(cls: type[T], change: Callable[[Any], Any], config: pydantic.ConfigDict, kw_only: bool) -> type[T]:
    hints = typing.get_type_hints(cls, include_extras=True)
    own = inspect.get_annotations(cls)
    keep = {name: hints[name] for name in own if typing.get_origin(hints[name]) is typing.ClassVar}
    cls.__annotations__ = {name: keep.get(name) or change(hints[name]) for name in own}
    made = typing.cast(type[T], checked(frozen=True, kw_only=kw_only, config=config)(cls))
    inner: Callable[..., None] = made.__init__

    @functools.wraps(inner)
    def __init__(self: Any, *args: Any, **values: Any) -> None:
        try:
            inner(self, *args, **(plain(values) if kw_only else values))
        except pydantic.ValidationError as error:
            raise explain(error, made) from None

    made.__init__ = __init__  # type: ignore[method-assign]
    return made


@functools.cache
def as_settings(cls: Any) -> Any:
    """A dataclass of a user's own as `settings`; one that is it already stays."""
    if pydantic.dataclasses.is_pydantic_dataclass(cls):
        return cls
    body: dict[str, Any] = {"__annotations__": {}, "__doc__": cls.__doc__, "__module__": cls.__module__}
    hints = typing.get_type_hints(cls, include_extras=True)
    for one in dataclasses.fields(cls):
        body["__annotations__"][one.name] = hints[one.name]
        if one.default is not dataclasses.MISSING:
            body[one.name] = one.default
        elif one.default_factory is not dataclasses.MISSING:
            body[one.name] = dataclasses.field(default_factory=one.default_factory)
    return settings(type(cls.__name__, (cls,), body))


@functools.cache
def adapter(cls: Any) -> TypeAdapter[Any]:
    """What checks data against a class or a type."""
    return TypeAdapter(cls)


def build(cls: type[T], tree: Any, prefix: str = "") -> T:
    """Settings from nested dictionaries; missing fields take their defaults.

    Args:
        prefix: where the class lies in what the user sees, e.g. ``"options."``.

    Raises:
        LabError: an unknown field, a wrong value; says where, what was given and what is allowed.
    """
    made: Any = as_settings(cls)  # type: ignore[arg-type]
    try:
        return typing.cast(T, adapter(made).validate_python(tree))
    except pydantic.ValidationError as error:
        raise explain(error, made, prefix) from None


def load(cls: Any, tree: dict[str, Any], closed: bool = True) -> Any:
    """A `document` from the content of its file; keys that the class lacks are refused or, not ``closed``, left out.

    Raises:
        LabError: says which field, what it holds and what is allowed.
    """
    names = [one.name for one in dataclasses.fields(cls)]
    for name in tree if closed else ():
        if name not in names:
            raise unknown("field", name, names)
    try:
        return adapter(cls).validate_python(tree)
    except pydantic.ValidationError as error:
        raise explain(error, cls) from None


def check(kind: Any, value: Any) -> None:
    """Raises a `LabError` where plain data does not fit a type."""
    try:
        adapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        raise explain(error, kind) from None


def plain(value: Any) -> Any:
    """``value`` with tuples as lists, NumPy scalars as Python's, keys as text: what JSON would give back."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(inner) for inner in value]
    return value.item() if hasattr(value, "item") and not isinstance(value, str) else value


LARGEST = 256_000_000  # bytes of a JSON file
_TOO_LARGE = re.compile(rb"\d[eE]\+?\d{3}")  # of a number, perhaps infinite


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError: no such file.
        LabError: no regular file, one that cannot be read, or no JSON (`DamagedError`).
    """
    try:
        check_regular(path, "a JSON file")
        if (size := path.stat().st_size) > LARGEST:
            raise DamagedError(f"{path} has {size:,} bytes; JSON files of up to {LARGEST:,} are read.")
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except (FileNotFoundError, LabError):
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that no system has
        raise LabError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        return parse(data)
    except ValueError as error:
        raise DamagedError(f"{path} is damaged: not JSON ({reason(error)}).") from error


class DamagedError(LabError):
    """A file whose content is not what it should be."""


def parse(data: bytes) -> Any:
    """JSON, with finite numbers and lists within lists up to a depth of 200 alone; ValueError for anything else."""
    try:
        tree = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        if b"NaN" in data or b"Infinity" in data:
            raise ValueError(f"{error}; NaN and Infinity are no numbers of JSON") from None
        raise
    if _TOO_LARGE.search(data):
        json.dumps(tree, allow_nan=False)  # 1e999 was read as infinite
    return tree


def json_schema(cls: Any) -> dict[str, Any]:
    """JSON Schema of a class."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | adapter(cls).json_schema()


def field_names(cls: type, prefix: str = "") -> list[str]:
    """All dotted names of the simple fields of nested settings; "options.NAME" for a dictionary called options."""
    return [*_field_names(cls, prefix)]


@functools.cache  # a folder's name asks for them once a field
def _field_names(cls: type, prefix: str) -> tuple[str, ...]:
    found: list[str] = []
    hints = typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        kind = hints[one.name]
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        name = f"{prefix}{one.name}.NAME" if typing.get_origin(kind) is dict else prefix + one.name
        found += _field_names(kind, f"{prefix}{one.name}.") if nested else [name]
    return tuple(found)


# What is wrong, in words ----------------------------------------------------------------------------------------------

_WANTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "float_type": "a number", "float_parsing": "a number", "finite_number": "a finite number",
    "bool_type": "true or false", "bool_parsing": "true or false", "string_type": "text",
    "dict_type": "a dictionary", "list_type": "a list", "tuple_type": "a list", "mapping_type": "a dictionary",
    "model_type": "a dictionary", "model_attributes_type": "a dictionary",
    "none_required": "null", "string_pattern_mismatch": "of another form", "recursion_loop": "free of circles",
}  # fmt: skip
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
FAR = 10**6  # a limit beyond this is not worth telling while it is kept
_LISTS = {int: "a list of whole numbers", str: "a list of names", float: "a list of numbers"}


def explain(error: pydantic.ValidationError, cls: Any, prefix: str = "") -> LabError:
    """The first thing that is wrong, names that do not exist before values, as a `LabError`."""
    found = error.errors(include_url=False)
    strange = [e for e in found if e["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    return _sentence((strange or found)[0], cls, prefix)


def _sentence(one: Any, cls: Any, prefix: str) -> LabError:
    kind, given, context = one["type"], one["input"], one.get("ctx", {})
    places = [place for place in one["loc"] if not (isinstance(place, str) and "[" in place)]
    if places and isinstance(places[0], int) and dataclasses.is_dataclass(cls):  # a positional argument
        places[0] = dataclasses.fields(cls)[places[0]].name
    name = dotted(places, prefix)
    group, own = _group(cls, places)
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        within = dotted(places[:-1], prefix)
        allowed = [dotted([*places[:-1], known], prefix) for known in own]
        if not allowed:
            return LabError(f"unknown field {name!r}: {within} has no fields here. Leave it out.")
        return unknown("field", name, allowed)
    field = f"{name} = {brief(given)}" if name else brief(given)
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return LabError(f"{name} is missing.")
    if kind in ("dataclass_type", "dataclass_exact_type"):
        listed = ", ".join(field_names(group, f"{name}." if name else ""))
        return LabError(f"{name or 'configuration'} = {brief(given)}: is a group of fields: {listed}.")
    if kind == "one_of":
        return unknown(context["what"] or name, given, context["names"])
    if kind == "value_error" and not isinstance(context.get("error"), LabError):
        return LabError(f"{name} {context.get('error')}.")
    if isinstance(context.get("error"), LabError):  # of a check of several fields at once
        said, where = str(context["error"]), dotted(places, prefix)
        return LabError(said if not where or where in said else f"{where}: {said}")
    info = _info(cls, places)
    example = f", e.g. {info.examples[0]}" if info is not None and info.examples else ""
    if kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number"):
        known = {short: getattr(m, short) for m in (info.metadata if info else []) for short in _BOUNDS
                 if hasattr(m, short) and abs(getattr(m, short)) < FAR}  # fmt: skip
        bounds = [f"{_BOUNDS[short]} {value:,.12g}" for short, value in (known | _bounds(context)).items()]
        finite = ["finite"] if kind == "finite_number" else []
        none = ", or none" if info is not None and type(None) in typing.get_args(info.annotation) else ""
        return LabError(f"{field}: must be {' and '.join([*bounds, *finite])}{none}{example}.")
    if kind in ("too_short", "too_long", "string_too_long"):
        sizes = {"min_length": "at least", "max_length": "at most"}
        size = " and ".join(f"{words} {context[n]:,}" for n, words in sizes.items() if n in context)
        return LabError(f"{field}: must have {size} {'characters' if 'string' in kind else 'entries'}{example}.")
    wanted = _WANTED.get(kind)
    items = _items(info)
    if items is not None and isinstance(given, str) and isinstance(places[-1], int):
        return LabError(f"{dotted(places[:-1], prefix)} holds {brief(given)}: must be {items}{example}.")
    return LabError(f"{field}: must be {wanted}{example}." if wanted else f"{field}: {one['msg']}.")


def _bounds(context: Mapping[str, Any]) -> dict[str, Any]:
    return {short: context[short] for short in _BOUNDS if short in context}


def dotted(places: Iterable[Any], prefix: str = "") -> str:
    """``learn.epochs``, ``accuracy[3][0]``: a place within nested data."""
    text = ""
    for place in places:
        text += f"[{place}]" if isinstance(place, int) else f".{place}" if text else str(place)
    return (prefix + text).rstrip(".")


def _items(info: FieldInfo | None) -> str | None:
    """What a list of this field holds, in words."""
    if info is None or typing.get_origin(info.annotation) is not tuple:
        return None
    item = typing.get_args(info.annotation)[0]
    return _LISTS.get(typing.get_args(item)[0] if typing.get_origin(item) is Annotated else item)


def _group(cls: Any, places: list[Any]) -> tuple[Any, list[str]]:
    """The class that holds a place, and the names of its fields."""
    for place in places:
        info = _fields(cls).get(place)
        inner = None if info is None else info.annotation
        if inner is None or not (dataclasses.is_dataclass(inner) or hasattr(inner, "model_fields")):
            break
        cls = inner
    return cls, list(_fields(cls))


def _info(cls: Any, places: list[Any]) -> FieldInfo | None:
    """What is declared of the field at a place, or of the list that holds it."""
    info = None
    for place in places:
        there = _fields(cls).get(place)
        if there is None:
            return info
        info, cls = there, there.annotation
    return info


def _fields(cls: Any) -> Mapping[Any, FieldInfo]:
    return getattr(cls, "__pydantic_fields__", {})


# What records are compared by ----------------------------------------------------------------------------------------


class _Part(pydantic.BaseModel):
    """Keys that are known are checked, others may be there."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class RecordedData(_Part):
    """Where the classes come from."""

    size: int | None = None
    order_rule: str | None = None


class RecordedConfig(_Part):
    """Of a record's configuration, as older and younger versions wrote it, what records are compared by; a whole one is
    read by `dne_lab.core.config.from_dict`."""

    precision: str = ""
    data: RecordedData = pydantic.Field(default_factory=RecordedData)
    network: dict[str, Any] = {}
    loss: dict[str, Any] = {}
    learn: dict[str, Any] = {}

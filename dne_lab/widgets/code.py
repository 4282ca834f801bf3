"""A view as the line of code that makes it again: the values of its controls in words, and how they are set."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from traitlets import TraitError

from dne_lab.core.errors import LabError, unknown

WIDE = 96  # letters of a line
SHORT = 120  # letters of a value that is written out


def words(control: Any) -> Any:
    """The value of a control: of choices the words that stand on the screen."""
    if hasattr(control, "options"):
        chosen = control.label
        return list(chosen) if isinstance(chosen, tuple) else chosen
    return control.value


def state(controls: Iterable[Any]) -> dict[str, Any]:
    """The controls by their labels; of those that offer nothing, none."""
    return {one.description: words(one) for one in controls if not hasattr(one, "options") or one.options}


def restore(controls: Sequence[Any], given: Mapping[str, Any], fit: Callable[[], None]) -> None:
    """Sets controls by what `state` gave, the ones first on which the others depend; ``fit`` makes them offer what
    there is.

    Raises:
        LabError: a control or a value that is not there.
    """
    known = [one.description for one in controls]
    for name in given:
        if name not in known:
            raise unknown("control in view", name, known)
    for one in controls:
        if one.description in given:
            fit()
            _set(one, given[one.description])
    fit()


def _set(control: Any, value: Any) -> None:
    name = control.description
    if hasattr(control, "options"):
        there = [str(label) for label, *_ in zip(control._options_labels, strict=False)]
        for each in value if isinstance(value, list | tuple) else [value]:
            if each not in there:
                raise unknown(f"value of {name!r} in view", each, there)
        control.label = tuple(value) if isinstance(value, list) else value
        return
    if hasattr(control, "max") and (not isinstance(value, int) or not control.min <= value <= control.max):
        raise LabError(f"view[{name!r}] = {value!r}: must be a whole number from {control.min} to {control.max}.")
    try:
        control.value = value
    except TraitError as error:
        raise LabError(f"view[{name!r}] = {value!r}: {error}") from error


def call(function: str, given: Sequence[str], more: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    """``explorer = function(given, name=more, view={...})`` and ``explorer`` below it, in lines of a cell."""
    named_ones = (f"{name}={value!r}" for name, value in more.items() if value not in (None, ()))
    first = _lines([*given, *named_ones])
    entries = _lines([f"{name!r}: {value!r}" for name, value in view.items()], 8)
    return (
        f"explorer = {function}(\n{first}\n    view={{\n{entries}\n    }},\n)\n"
        "explorer  # explorer.figure() is the same as a picture\n"
    )


def _lines(entries: Sequence[str], indent: int = 4) -> str:
    """Entries behind one another, with a comma behind each, in lines that a cell shows whole."""
    lines = [""]
    for entry in entries:
        if lines[-1] and len(lines[-1]) + len(entry) > WIDE:
            lines.append("")
        lines[-1] += f" {entry},"
    return "\n".join(" " * (indent - 1) + line for line in lines)


def named(value: Any, otherwise: str) -> str:
    """What a notebook calls an object: its variable, or the value itself where it is short; else a word for it."""
    if isinstance(value, str):
        return repr(value)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    for name, one in getattr(shell, "user_ns", {}).items():
        if one is value and not name.startswith("_"):
            return str(name)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {named(one, 'model')}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value) and len(repr(value)) < SHORT:
        return repr(list(value))
    return otherwise

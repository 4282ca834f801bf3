"""The error that a user sees: what was wrong, what was given, what is allowed."""

import difflib
import re
import traceback
from collections.abc import Iterable

LONGEST = 80  # characters of what was given that an error repeats
REASON = 400  # characters of what another library says of an error


class LabError(ValueError):
    """A wrong value or missing thing, described so that the reader knows what to do next.

    The command line prints its message without a traceback and exits with status 2; so does a notebook cell.
    """

    def __str__(self) -> str:
        return visible(super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback: the line of the cell that led here, and the message.

        ``raise`` in the debugger (``%debug``) still shows every frame.
        """
        frames = traceback.extract_tb(self.__traceback__)
        line = next((frame.line for frame in frames if frame.name == "<module>" and frame.line), None)
        return [*([f"in: {line}"] if line else []), f"LabError: {self}"]


class SaidElsewhere(LabError):
    """What another process of the same run has raised as well, which says it: the command line is silent here."""


# Control characters but for line ends and tabs, and those that turn the direction of writing.
_HIDDEN = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069]")


def visible(text: str) -> str:
    """``text`` as a terminal may get it: what would move its cursor, colour it or turn its direction is written out,
    for a name from a file or a folder can hold it."""
    return _HIDDEN.sub(lambda one: one[0].encode("unicode_escape").decode(), text)


def brief(value: object, most: int = LONGEST) -> str:
    """A value as an error shows it: what does not fit into ``most`` characters is cut."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, lists within lists
        text = f"{type(value).__name__} that is too long to be shown"
    text = " ".join(text.split()) if "\n" in text else text  # an array's
    return text if len(text) <= most else f"{text[: most - 3]}..."


def reason(error: BaseException, most: int = REASON) -> str:
    """What another library says of an error, in one line; what does not fit into ``most`` characters is cut: a damaged
    file can put anything into it, thousands of bytes long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown(what: str, given: object, allowed: Iterable[str]) -> LabError:
    """The error for a name that does not exist: lists the allowed ones, the nearest first."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(given)[:LONGEST], names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return LabError(f"unknown {what} {brief(given)}. {hint}Allowed: {', '.join(names)}.")

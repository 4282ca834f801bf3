"""Which attention points a probe listens to, by kind, layer, expert and head."""

from collections.abc import Iterable
from typing import Any

from dne_lab.analysis.hosts.base import Entry, Host
from dne_lab.errors import LabError, unknown

Names = str | Iterable[str] | None
Numbers = int | Iterable[int] | None
COLUMNS = ("kind", "layer", "expert", "head")


def select(host: Host, kind: Names, layer: Numbers, expert: Numbers, head: Numbers) -> list[Entry]:
    """The entries of the given kinds, layers, experts and heads (None: all).

    Raises:
        LabError: if a given one does not exist, or nothing of it is left beside the other choices.
    """
    there = host.entries
    asked = {
        "kind": _set("kind", kind, str),
        "layer": _set("layer", layer, int),
        "expert": _set("expert", expert, int),
        "head": _set("head", head, int),
    }
    for column, name in enumerate(COLUMNS):
        known = {entry[column] for entry in there}
        for value in sorted((asked[name] or known) - known):
            if name == "kind":
                raise unknown(f"kind of attention in {host.title}", value, map(str, known))
            raise LabError(f"{name} {value}: this network has {name}s {_numbers(known)}.")
    left = [e for e in there if all(v in (asked[n] or {v}) for n, v in zip(COLUMNS, e, strict=True))]
    for column, name in enumerate(COLUMNS):
        for value in sorted((asked[name] or set()) - {entry[column] for entry in left}):
            mine = [entry for entry in there if entry[column] == value]
            others = ", ".join(f"{n} {_numbers(v)}" for n, v in asked.items() if v and n != name)
            raise LabError(f"no attention of {name} {value} with {others}. {name} {value} has: {describe(mine)}.")
    return left


def describe(found: Iterable[Entry]) -> str:
    """In words: "spatial (layers 0, 1, experts 1), ..."."""
    kinds: dict[str, list[Entry]] = {}
    for entry in found:
        kinds.setdefault(entry[0], []).append(entry)
    return ", ".join(
        f"{kind} ({', '.join(f'{n}s {_numbers({e[c] for e in mine})}' for c, n in enumerate(COLUMNS) if c)})"
        for kind, mine in kinds.items()
    )


def _set(name: str, given: Any, of: type) -> set[Any] | None:
    if given is None:
        return None
    values = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for value in values:
        whole = of is int and not isinstance(value, bool) and hasattr(value, "__index__")
        if not whole and not (of is str and isinstance(value, str)):
            what = "a name or several" if of is str else "a whole number or several"
            raise LabError(f"{name} = {given!r}: must be {what}, or None for all.")
    if not values:
        raise LabError(f"{name} = {given!r} selects nothing. None selects all.")
    return {of(value) for value in values}


def _numbers(values: Iterable[Any]) -> str:
    """1, 2, 3, 7 -> "1-3, 7"; names as they are."""
    ordered = sorted(values)
    if not all(isinstance(value, int) for value in ordered):
        return ", ".join(map(str, ordered))
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
